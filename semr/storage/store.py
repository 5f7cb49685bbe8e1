"""Write, find and read dataset versions.

Layout in the bucket `Settings.datasets_bucket`:

    <dataset>/parts/<sha256 of the content>.parquet
    <dataset>/versions/<version id>/manifest.json

The manifest is put last and in one piece, which S3 makes visible atomically: a version is there as a whole or not at
all.
Parts that no manifest names (a writer died) are invisible, and the next writer of the same content takes them over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from semr.errors import InvalidInputError
from semr.settings import Settings, get_settings
from semr.storage.chunks import fixed_rows
from semr.storage.errors import CorruptDatasetError, DatasetNotFoundError
from semr.storage.fingerprint import table_sha256, type_name
from semr.storage.manifest import VERSION_DIGITS, DatasetVersion, Part, version_id
from semr.storage.s3 import CHECK_STALL_TIMEOUT_SECONDS, Connection, is_server_error

LATEST = "latest"
# 12.8 MB of 28x28 images: several parts for parallel readers from a few ten thousand rows on, and little memory a part.
ROWS_PER_PART = 16_384

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_NAME_RULE = "1 to 63 characters, of a-z, 0-9, '.', '_' and '-', the first one a letter or a digit"
_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_DIGITS}}}")
_MANIFEST = "manifest.json"
_MANIFEST_READERS = 16
# pandas writes its own version and index layout there, which would make equal content differ.
_METADATA_LEFT_OUT = (b"pandas",)


class ObjectStore:
    """Dataset versions in one bucket of an S3 server.

    Every method may raise `DependencyUnavailableError` when the server does not answer within the bounded retries (at
    most about a minute, for a server that accepts connections and then stays silent), and `SettingsError` when it
    refuses the credentials. An instance may be pickled to another process, which opens its own connections.
    """

    def __init__(self, connection: Connection, bucket: str) -> None:
        self.connection = connection
        self.bucket = bucket
        self._bucket_made = False

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> ObjectStore:
        """The object store of the contract (default: `get_settings()`).

        Raises:
            SettingsError: the endpoint or a key is not set.
        """
        settings = settings or get_settings()
        return cls(Connection.from_settings(settings), settings.datasets_bucket)

    def __repr__(self) -> str:
        return f"ObjectStore({self.connection!r}, bucket={self.bucket!r})"

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[Connection, str]]:
        return (ObjectStore, (self.connection, self.bucket))

    @cached_property
    def filesystem(self) -> fs.S3FileSystem:
        """The pyarrow file system, for readers such as Ray Data; paths start with the bucket."""
        return self.connection.open()

    def check(self) -> None:
        """Ask the server for the bucket, in three tries and at most about 15 s.

        Raises:
            DependencyUnavailableError: no try was answered.
        """
        with self.connection.named_errors():
            self.connection.open(CHECK_STALL_TIMEOUT_SECONDS).get_file_info(self.bucket)

    def write_part(self, dataset: str, table: pa.Table, split: str) -> Part:
        """Store the rows of `table` as one part, unless the store holds them already; callable from any process.

        Nothing refers to the part until `commit` is given it. The whole part is held in memory once as Parquet.

        Raises:
            InvalidInputError: a name is not valid, there are no rows, or a column's type would not survive Parquet.
        """
        _check_name("dataset", dataset)
        _check_name("split", split)
        if table.num_rows == 0:
            raise InvalidInputError(f"Split {split!r} of dataset {dataset!r} has no rows: a part needs at least one.")
        table = _normal(table)
        sha256 = table_sha256(table)
        part = Part(split=split, rows=table.num_rows, sha256=sha256, key=f"{dataset}/parts/{sha256}.parquet")
        with self.connection.named_errors():
            self._make_bucket()
            if self._file_type(part.key) == fs.FileType.NotFound:
                self._put(part.key, _to_parquet(table, sha256))
        return part

    def commit(
        self, dataset: str, parts: Sequence[Part], schema: pa.Schema, *, source: str, parents: Sequence[str] = ()
    ) -> DatasetVersion:
        """Make a version of `parts` visible; the order of the parts within a split is the order of the rows.

        The same content gives the same version: where it exists already, it is returned as it was first committed.

        Args:
            dataset: name of the dataset.
            parts: what `write_part` returned, for this dataset.
            schema: schema of every part; its metadata (but pandas' own) belongs to the content.
            source: where the data came from, for a person.
            parents: ids of the versions that this one was made from.

        Raises:
            InvalidInputError: the name is not valid, there are no parts, or a part is not in the store.
        """
        _check_name("dataset", dataset)
        if not parts:
            raise InvalidInputError(f"A version of dataset {dataset!r} needs at least one part.")
        ordered = tuple(sorted(parts, key=lambda part: part.split))
        schema = _normal_schema(schema)
        columns = tuple((field.name, type_name(field.type)) for field in schema)
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        version = version_id(columns, metadata, ordered)
        key = f"{dataset}/versions/{version}/{_MANIFEST}"
        with self.connection.named_errors():
            existing = self._find_manifest(key)
            if existing is not None:
                return existing
            self._check_parts(dataset, ordered)
            splits: dict[str, int] = {}
            for part in ordered:
                splits[part.split] = splits.get(part.split, 0) + part.rows
            committed = DatasetVersion(
                name=dataset,
                version=version,
                uri=f"s3://{self.bucket}/{dataset}/versions/{version}",
                splits=splits,
                schema=columns,
                metadata=metadata,
                created=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
                source=source,
                parents=tuple(parents),
                parts=ordered,
            )
            self._put(key, committed.to_json().encode())
        return committed

    def write_dataset(
        self,
        name: str,
        splits: Mapping[str, pa.Table | Iterable[pa.RecordBatch]],
        *,
        source: str,
        parents: Sequence[str] = (),
        rows_per_part: int = ROWS_PER_PART,
    ) -> DatasetVersion:
        """Write every split in parts of `rows_per_part` rows and commit them; holds about one part in memory.

        How the input is batched has no influence on the version; `rows_per_part` has.

        Raises:
            InvalidInputError: a name is not valid, a split has no rows, or schemas differ.
        """
        _check_name("dataset", name)
        if rows_per_part < 1:
            raise InvalidInputError(f"rows_per_part is {rows_per_part}: it has to be at least 1.")
        parts: list[Part] = []
        schema: pa.Schema | None = None
        for split, rows in splits.items():
            _check_name("split", split)
            before = len(parts)
            for table in fixed_rows(rows.to_batches() if isinstance(rows, pa.Table) else rows, rows_per_part):
                schema = table.schema if schema is None else schema
                if not table.schema.equals(schema):
                    raise InvalidInputError(
                        f"Split {split!r} of dataset {name!r} differs from the first split in its schema."
                    )
                parts.append(self.write_part(name, table, split))
            if len(parts) == before:
                raise InvalidInputError(f"Split {split!r} of dataset {name!r} has no rows: leave it out or fill it.")
        if schema is None:
            raise InvalidInputError(f"A version of dataset {name!r} needs at least one split.")
        return self.commit(name, parts, schema, source=source, parents=parents)

    def dataset(self, name: str, version: str = LATEST) -> DatasetVersion:
        """The version of dataset `name` with this id, or the one committed last.

        Raises:
            InvalidInputError: the name or the version is not well formed.
            DatasetNotFoundError: there is no such dataset or version.
            CorruptDatasetError: its manifest cannot be read.
        """
        if version == LATEST:
            versions = self.versions(name)
            if not versions:
                raise DatasetNotFoundError(f"There is no dataset {name!r} in {self.bucket}: write a version first.")
            return versions[-1]
        _check_name("dataset", name)
        if not _VERSION.fullmatch(version):
            raise InvalidInputError(
                f"{version!r} is not a version: expected {LATEST!r} or {VERSION_DIGITS} hexadecimal digits."
            )
        with self.connection.named_errors():
            found = self._find_manifest(f"{name}/versions/{version}/{_MANIFEST}")
        if found is None:
            raise DatasetNotFoundError(f"Dataset {name!r} has no version {version} in {self.bucket}.")
        return found

    def versions(self, name: str) -> list[DatasetVersion]:
        """All versions of dataset `name`, in the order of their commits; empty when there is no such dataset.

        Raises:
            InvalidInputError: the name is not valid.
            CorruptDatasetError: a manifest cannot be read.
        """
        _check_name("dataset", name)
        folder = fs.FileSelector(f"{self.bucket}/{name}/versions", allow_not_found=True, recursive=True)
        with self.connection.named_errors():
            infos = self.filesystem.get_file_info(folder)
            keys = [info.path.removeprefix(f"{self.bucket}/") for info in infos if info.base_name == _MANIFEST]
            with ThreadPoolExecutor(_MANIFEST_READERS) as pool:
                found = list(pool.map(self._find_manifest, keys))
        return sorted(filter(None, found), key=lambda version: (version.created, version.version))

    def paths(self, version: DatasetVersion, split: str) -> list[str]:
        """Paths (`bucket/key`) of the Parquet objects of `split` in row order, to be used with `filesystem`.

        Raises:
            DatasetNotFoundError: the version has no such split.
        """
        if split not in version.splits:
            raise DatasetNotFoundError(
                f"Version {version.version} of dataset {version.name!r} has no split {split!r}, "
                f"only {', '.join(sorted(version.splits))}."
            )
        return [f"{self.bucket}/{part.key}" for part in version.parts if part.split == split]

    def read(self, version: DatasetVersion, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of `split` in order, of `columns` (default: all) in the order asked for.

        Raises:
            InvalidInputError: the dataset has no such column.
            DatasetNotFoundError: the version has no such split.
            CorruptDatasetError: a part is missing or is not a Parquet file with the rows that the manifest promises.
        """
        known = [name for name, _ in version.schema]
        unknown = [name for name in columns or () if name not in known]
        if unknown:
            raise InvalidInputError(
                f"Dataset {version.name!r} has no column {', '.join(map(repr, unknown))}, only {', '.join(known)}."
            )
        self.paths(version, split)
        parts = [part for part in version.parts if part.split == split]
        return pa.concat_tables([self._read_part(version, part, columns) for part in parts])

    def verify(self, version: DatasetVersion) -> None:
        """Read every part and compare its content with the manifest, one part in memory at a time.

        Raises:
            CorruptDatasetError: a part is missing, unreadable, or has other content.
        """
        expected = version_id(version.schema, version.metadata, version.parts)
        if expected != version.version:
            raise CorruptDatasetError(
                f"The manifest of version {version.version} of dataset {version.name!r} describes version {expected}: "
                "it was changed after it was written."
            )
        for part in version.parts:
            table = self._read_part(version, part, None)
            if table_sha256(table) != part.sha256:
                raise _corrupt(version, part, "its content is not what was written")

    def _make_bucket(self) -> None:
        if not self._bucket_made and self._file_type("") == fs.FileType.NotFound:
            self.filesystem.create_dir(self.bucket)
        self._bucket_made = True

    def _file_type(self, key: str) -> fs.FileType:
        return self.filesystem.get_file_info(f"{self.bucket}/{key}".rstrip("/")).type

    def _put(self, key: str, data: bytes | pa.Buffer) -> None:
        with self.filesystem.open_output_stream(f"{self.bucket}/{key}") as stream:
            stream.write(data)

    def _find_manifest(self, key: str) -> DatasetVersion | None:
        try:
            with self.filesystem.open_input_stream(f"{self.bucket}/{key}") as stream:
                text = stream.read()
        except FileNotFoundError:
            return None
        try:
            return DatasetVersion.from_json(text)
        except CorruptDatasetError as error:
            raise CorruptDatasetError(f"s3://{self.bucket}/{key}: {error}") from error

    def _check_parts(self, dataset: str, parts: tuple[Part, ...]) -> None:
        for part, info in zip(
            parts, self.filesystem.get_file_info([f"{self.bucket}/{part.key}" for part in parts]), strict=True
        ):
            if info.type != fs.FileType.File or not part.key.startswith(f"{dataset}/"):
                raise InvalidInputError(
                    f"Part {part.key} is not a stored part of dataset {dataset!r}: write it with write_part first."
                )

    def _read_part(self, version: DatasetVersion, part: Part, columns: Sequence[str] | None) -> pa.Table:
        try:
            with self.connection.named_errors(), self.filesystem.open_input_file(f"{self.bucket}/{part.key}") as file:
                table = _from_parquet(file, columns)
        except FileNotFoundError as error:
            raise _corrupt(version, part, "it is missing") from error
        except pa.ArrowException as error:
            raise _corrupt(version, part, "it is not a readable Parquet file") from error
        if table.num_rows != part.rows:
            raise _corrupt(version, part, f"it has {table.num_rows} rows instead of {part.rows}")
        return table


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInputError(f"{name!r} is not a valid {what} name: expected {_NAME_RULE}.")


def _corrupt(version: DatasetVersion, part: Part, what: str) -> CorruptDatasetError:
    return CorruptDatasetError(
        f"Part {part.key} of version {version.version} of dataset {version.name!r} is damaged, {what}: "
        "delete the object and write the dataset again."
    )


def _normal_schema(schema: pa.Schema) -> pa.Schema:
    """The schema without what differs between writers of equal content: field metadata, pandas' notes, dictionaries."""
    if len(set(schema.names)) != len(schema.names):
        raise InvalidInputError(f"Column names have to differ, found {', '.join(schema.names)}.")
    fields = []
    for field in schema:
        kind = field.type.value_type if isinstance(field.type, pa.DictionaryType) else field.type
        fields.append(pa.field(field.name, kind))
    kept = {key: value for key, value in (schema.metadata or {}).items() if key not in _METADATA_LEFT_OUT}
    return pa.schema(fields, metadata=kept or None)


def _normal(table: pa.Table) -> pa.Table:
    return table.cast(_normal_schema(table.schema))


def _from_parquet(file: pa.NativeFile, columns: Sequence[str] | None) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except OSError as error:
        if is_server_error(error):
            raise
        # Parquet reports damaged pages and footers as plain OSError.
        raise pa.ArrowInvalid(str(error)) from error


def _to_parquet(table: pa.Table, sha256: str) -> pa.Buffer:
    """The table as a Parquet file that was read back once: some types and nulls do not come back as they went in."""
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(table, sink, compression="zstd")
    except pa.ArrowNotImplementedError as error:
        raise InvalidInputError(f"The table cannot be stored as Parquet: {error}.") from error
    data = sink.getvalue()
    if _reads_back(data, sha256, None):
        return data
    changed = [name for name in table.column_names if not _reads_back(data, table_sha256(table.select([name])), [name])]
    raise InvalidInputError(
        f"Parquet would not give back column {', '.join(changed)} of type "
        f"{', '.join(str(table.schema.field(name).type) for name in changed)} as it is: cast it to another type, "
        "and leave no nulls in lists of fixed size."
    )


def _reads_back(data: pa.Buffer, sha256: str, columns: list[str] | None) -> bool:
    try:
        return table_sha256(pq.read_table(pa.BufferReader(data), columns=columns)) == sha256
    except (pa.ArrowException, OSError):
        return False
