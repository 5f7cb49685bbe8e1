"""The audit trail: one small JSON object for each decision, append-only, in the object store.

Layout in the bucket `Settings.datasets_bucket`: `audit/<model>/<UTC time with microseconds>-<id>.json`. Keys sort by time, a
record has a key of its own and is never written over with other content, so that writers need not know of each other.
"""

from __future__ import annotations

import json
import time as clock
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, get_args

from pyarrow import fs

from semr.errors import InvalidInputError
from semr.storage import ObjectStore

Kind = Literal[
    "triggered",
    "launched",
    "trained",
    "gate",
    "deployed",
    "verified",
    "promoted",
    "refused",
    "rolled_back",
    "failed",
    "paused",
    "resumed",
    "skipped",
]
KINDS: tuple[str, ...] = get_args(Kind)

_PREFIX = "audit"
_READERS = 16
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@dataclass(frozen=True)
class AuditRecord:
    """One decision.

    Attributes:
        time: seconds since the epoch.
        model: registered model.
        kind: what was decided or done.
        launch_id: launch that it belongs to, "" for none.
        version: model version that it is about, "" for none.
        details: what else a person may want to know, JSON values.
        id: makes the key unique; the same record may be stored again without being doubled.
    """

    time: float
    model: str
    kind: Kind
    launch_id: str = ""
    version: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def key(self) -> str:
        """Key of the object that holds it."""
        stamp = datetime.fromtimestamp(self.time, timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        return f"{_PREFIX}/{self.model}/{stamp}-{self.id}.json"

    def to_json(self) -> str:
        """The record as it is stored."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "id": self.id,
            "time": self.time,
            "model": self.model,
            "kind": self.kind,
            "launch_id": self.launch_id,
            "version": self.version,
            "details": self.details,
        }

    @classmethod
    def from_json(cls, text: str | bytes) -> AuditRecord:
        """Inverse of `to_json`.

        Raises:
            InvalidInputError: it is not a record.
        """
        try:
            content = json.loads(text)
            return cls(**content)
        except (ValueError, TypeError) as error:
            raise InvalidInputError(f"{text[:100]!r} is not an audit record.") from error


class AuditTrail:
    """The audit trail in one object store; its methods raise `DependencyUnavailableError` when the store is away."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._bucket_made = False

    def append(
        self,
        model: str,
        kind: Kind,
        *,
        launch_id: str = "",
        version: str = "",
        details: Mapping[str, Any] | None = None,
        time: float | None = None,
    ) -> AuditRecord:
        """Store a new record; `time` in seconds since the epoch, by default now.

        Raises:
            InvalidInputError: the model's name cannot be part of a key, or there is no such kind.
        """
        if kind not in KINDS:
            raise InvalidInputError(f"{kind!r} is not a kind of audit record: choose one of {', '.join(KINDS)}.")
        moment = clock.time() if time is None else time
        record = AuditRecord(moment, model, kind, launch_id, version, dict(details or {}))
        self.put(record)
        return record

    def put(self, record: AuditRecord) -> None:
        """Store `record`; storing it again changes nothing.

        Raises:
            InvalidInputError: the model's name cannot be part of a key.
        """
        _check_model(record.model)
        bucket = self._store.bucket
        with self._store.connection.named_errors():
            if not self._bucket_made:
                self._store.filesystem.create_dir(bucket)
                self._bucket_made = True
            with self._store.filesystem.open_output_stream(f"{bucket}/{record.key}") as stream:
                stream.write(record.to_json().encode())

    def records(self, model: str, limit: int | None = None) -> list[AuditRecord]:
        """The records of `model`, oldest first.

        Args:
            model: registered model.
            limit: only so many of the newest; None for all.

        Raises:
            InvalidInputError: the model's name cannot be part of a key, or an object there is not a record.
        """
        _check_model(model)
        selector = fs.FileSelector(f"{self._store.bucket}/{_PREFIX}/{model}", allow_not_found=True)
        with self._store.connection.named_errors():
            infos = self._store.filesystem.get_file_info(selector)
            paths = sorted(info.path for info in infos if info.type == fs.FileType.File)
            if limit is not None:
                paths = paths[max(0, len(paths) - limit) :]
            with ThreadPoolExecutor(_READERS) as pool:
                return list(pool.map(self._read, paths))

    def _read(self, path: str) -> AuditRecord:
        with self._store.filesystem.open_input_stream(path) as stream:
            return AuditRecord.from_json(stream.read())


def _check_model(model: str) -> None:
    if not model or not set(model) <= _NAME_CHARACTERS:
        raise InvalidInputError(f"{model!r} cannot name a model: use letters, digits, '-' and '_'.")
