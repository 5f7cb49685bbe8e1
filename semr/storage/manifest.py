"""What a dataset version is: its parts, its identity, and the JSON text that the object store keeps of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from semr.storage.errors import CorruptDatasetError

FORMAT_VERSION = 1
VERSION_DIGITS = 16


@dataclass(frozen=True)
class Part:
    """One Parquet object of a dataset version.

    Args:
        split: name of the split that the rows belong to.
        rows: number of rows.
        sha256: content hash, see `semr.storage.fingerprint`; 64 hexadecimal digits.
        key: key of the object within the bucket.
    """

    split: str
    rows: int
    sha256: str
    key: str


@dataclass(frozen=True)
class DatasetVersion:
    """Reference to one immutable version of a dataset; small enough to travel between tasks in place of the data.

    Args:
        name: name of the dataset.
        version: identity of the content, 16 hexadecimal digits.
        uri: `s3://bucket/name/versions/version`.
        splits: rows per split.
        schema: (name, type) of each column, types as in `semr.storage.fingerprint.type_name`.
        metadata: schema metadata that belongs to the content, for example the height and width of an image column.
        created: UTC time of the first commit, ISO 8601.
        source: where the data came from, for a person; not part of the identity.
        parents: versions that this one was made from; not part of the identity.
        parts: the Parquet objects in row order, grouped by split.
    """

    name: str
    version: str
    uri: str
    splits: dict[str, int]
    schema: tuple[tuple[str, str], ...]
    created: str
    source: str
    parts: tuple[Part, ...]
    parents: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows of all splits together."""
        return sum(self.splits.values())

    def to_json(self) -> str:
        """The manifest: one JSON object with sorted keys."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> DatasetVersion:
        """Read what `to_json` wrote.

        Raises:
            CorruptDatasetError: the text is not a manifest of this format version.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            found = fields.pop("format_version")
            if found != FORMAT_VERSION:
                raise CorruptDatasetError(
                    f"The manifest has format version {found}, this release reads {FORMAT_VERSION}: "
                    "use the release of SEMR that wrote it, or a newer one."
                )
            fields["schema"] = tuple((str(name), str(kind)) for name, kind in fields["schema"])
            fields["parents"] = tuple(fields["parents"])
            fields["parts"] = tuple(Part(**part) for part in fields["parts"])
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptDatasetError(f"The text is not the manifest of a dataset version: {error!r}.") from error


def version_id(schema: tuple[tuple[str, str], ...], metadata: dict[str, str], parts: tuple[Part, ...]) -> str:
    """Identity of the content: the first 16 hexadecimal digits of the SHA-256 of its canonical JSON description.

    Neither the name, the keys, the time nor the source take part, so that equal content has an equal id everywhere.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "schema": schema,
        "metadata": metadata,
        "parts": [{"split": part.split, "rows": part.rows, "sha256": part.sha256} for part in parts],
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:VERSION_DIGITS]
