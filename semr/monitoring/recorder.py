"""Keep recent requests and labels in the object store, for the next training.

Layout in the bucket `Settings.datasets_bucket`, times in UTC:

    <model>-live/requests/<yyyymmddThhmmss.ffffff>-<uuid>.parquet   see `request_schema`
    <model>-live/feedback/<yyyymmddThhmmss.ffffff>-<uuid>.parquet   see `FEEDBACK_SCHEMA` and `VALUES_SCHEMA`

Every replica writes objects of its own. What is not written yet is lost when a process is killed: at most
`FLUSH_SECONDS` of traffic while the store answers.
"""

from __future__ import annotations

import logging
import math
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from semr.errors import DependencyUnavailableError, SettingsError
from semr.monitoring.buffer import BoundedBuffer
from semr.monitoring.rate import RowLimit
from semr.storage import ObjectStore

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
FLUSH_BYTES = 4_000_000
#: Held at most, and as much again while it is being written.
BUFFER_BYTES = 32_000_000
#: Requests are sampled above this; a day at this rate is 17 million rows.
ROWS_PER_SECOND = 200.0

TIME_FORMAT = "%Y%m%dT%H%M%S.%f"
SHAPE_KEY = b"shape"
FEEDBACK_SCHEMA = pa.schema(
    [("prediction_id", pa.string()), ("row", pa.int32()), ("label", pa.int32()), ("time", pa.timestamp("us", tz="UTC"))]
)
#: The same for forecasts: true values in place of a label.
VALUES_SCHEMA = FEEDBACK_SCHEMA.set(2, pa.field("values", pa.list_(pa.float32())))

_CLOSE_SECONDS = 10.0
# Of a row besides its input: id, times, version, Python's own.
_ROW_OVERHEAD_BYTES = 200

Kind = Literal["requests", "feedback"]
Count = Callable[[Kind, int], None]


@dataclass(frozen=True)
class RecordedRequest:
    """A request that was answered.

    Attributes:
        time: seconds since 1970.
        rows: which rows of the request these are (rows,).
        inputs: (rows, ...).
        classes: predicted classes (rows,), None when the model is no classifier.
    """

    prediction_id: str
    time: float
    version: str
    rows: npt.NDArray[np.int32]
    inputs: npt.NDArray[Any]
    classes: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class RecordedFeedback:
    """Labels (rows,) or true values (rows, values) of the rows (rows,) of a request, at `time` in seconds since 1970."""

    prediction_id: str
    time: float
    rows: npt.NDArray[np.int32]
    truth: npt.NDArray[np.int32] | npt.NDArray[np.float32]


def request_schema(shape: tuple[int, ...]) -> pa.Schema:
    """Columns of recorded requests with inputs of `shape` (without the batch axis), which is kept as metadata."""
    fields = [
        ("prediction_id", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("version", pa.string()),
        ("row", pa.int32()),
        ("input", pa.list_(pa.float32(), math.prod(shape))),
        ("prediction", pa.int32()),
    ]
    return pa.schema(fields, metadata={SHAPE_KEY: ",".join(map(str, shape)).encode()})


class Recorder:
    """Writes from a thread of its own; a caller never waits, and what does not fit is dropped and counted.

    Args:
        store: object store to write to.
        model: name of the model.
        recorded, dropped: called with the kind and a number of rows, from any thread.
    """

    def __init__(
        self,
        store: ObjectStore,
        model: str,
        recorded: Count,
        dropped: Count,
        *,
        rows_per_second: float = ROWS_PER_SECOND,
        flush_seconds: float = FLUSH_SECONDS,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._store = store
        self._model = model
        self._recorded, self._dropped = recorded, dropped
        self._flush_seconds = flush_seconds
        self._limit = RowLimit(rows_per_second)
        self._random = np.random.default_rng()
        self._buffer: BoundedBuffer[RecordedRequest | RecordedFeedback] = BoundedBuffer(buffer_bytes)
        self._thread = threading.Thread(target=self._run, name="semr-recorder", daemon=True)
        self._thread.start()

    def add_request(self, request: RecordedRequest) -> None:
        """Record the request, or a random part of its rows above the limit of rows per second."""
        allowed = self._limit.take(len(request.rows))
        self._count_dropped("requests", len(request.rows) - allowed)
        if not allowed:
            return
        if allowed < len(request.rows):
            chosen = np.sort(self._random.choice(len(request.rows), allowed, replace=False))
            classes = None if request.classes is None else request.classes[chosen]
            request = RecordedRequest(
                request.prediction_id,
                request.time,
                request.version,
                request.rows[chosen],
                request.inputs[chosen],
                classes,
            )
        if not self._buffer.offer(request, request.inputs.nbytes + allowed * _ROW_OVERHEAD_BYTES):
            self._count_dropped("requests", allowed)

    def add_feedback(self, feedback: RecordedFeedback) -> None:
        """Record labels."""
        size = len(feedback.rows) * _ROW_OVERHEAD_BYTES + len(feedback.prediction_id)
        if len(feedback.rows) and not self._buffer.offer(feedback, size):
            self._count_dropped("feedback", len(feedback.rows))

    def close(self) -> None:
        """Write what is left, if the store answers, and end the thread; waits 10 s at most."""
        self._buffer.close()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            items = self._buffer.drain(FLUSH_BYTES, self._flush_seconds)
            for kind, table in _tables(items):
                self._write(kind, table)
            if self._buffer.is_closed and not items:
                return

    def _write(self, kind: Kind, table: pa.Table) -> None:
        """Put the table into the store, as often as it takes; given up when the recorder is closed."""
        is_first_failure = True
        while True:
            try:
                _put(self._store, _folder(self._model, kind), table)
            except (DependencyUnavailableError, SettingsError, FileNotFoundError) as error:
                if is_first_failure:
                    logger.warning("requests of model %s cannot be recorded for now: %s", self._model, error)
                    is_first_failure = False
                if self._buffer.wait_closed(self._flush_seconds):
                    self._count_dropped(kind, table.num_rows)
                    return
            else:
                self._recorded(kind, table.num_rows)
                return

    def _count_dropped(self, kind: Kind, rows: int) -> None:
        if rows:
            self._dropped(kind, rows)


def live_folder(model: str) -> str:
    """Folder of the bucket that holds what is recorded of `model`."""
    return f"{model}-live"


def _folder(model: str, kind: Kind) -> str:
    return f"{live_folder(model)}/{kind}"


def _put(store: ObjectStore, folder: str, table: pa.Table) -> None:
    newest: datetime = max(table["time"].to_pylist())
    key = f"{store.bucket}/{folder}/{newest.astimezone(timezone.utc).strftime(TIME_FORMAT)}-{uuid.uuid4().hex}.parquet"
    with store.connection.named_errors():
        if store.filesystem.get_file_info(store.bucket).type == fs.FileType.NotFound:
            store.filesystem.create_dir(store.bucket)
        pq.write_table(table, key, filesystem=store.filesystem, compression="zstd")


def _tables(items: Iterable[RecordedRequest | RecordedFeedback]) -> list[tuple[Kind, pa.Table]]:
    """One table for the requests of each shape of input, and one for each kind of feedback."""
    by_shape: dict[tuple[int, ...], list[RecordedRequest]] = {}
    feedback: list[RecordedFeedback] = []
    for item in items:
        if isinstance(item, RecordedFeedback):
            feedback.append(item)
        else:
            by_shape.setdefault(item.inputs.shape[1:], []).append(item)
    tables: list[tuple[Kind, pa.Table]] = [
        ("requests", _request_table(shape, requests)) for shape, requests in by_shape.items()
    ]
    for is_forecast in (False, True):
        of_kind = [each for each in feedback if (each.truth.ndim == 2) == is_forecast]
        if of_kind:
            tables.append(("feedback", _feedback_table(of_kind)))
    return tables


def _request_table(shape: tuple[int, ...], requests: list[RecordedRequest]) -> pa.Table:
    schema = request_schema(shape)
    inputs = np.concatenate([each.inputs.reshape(len(each.rows), -1) for each in requests]).astype(np.float32)
    predictions = pa.concat_arrays(
        [
            pa.nulls(len(each.rows), pa.int32())
            if each.classes is None
            # A class that int32 cannot hold is no class that anyone could learn from.
            else pa.array(each.classes, mask=(each.classes < -(2**31)) | (each.classes >= 2**31)).cast(pa.int32())
            for each in requests
        ]
    )
    columns = [
        pa.array([each.prediction_id for each in requests for _ in each.rows], pa.string()),
        _times(requests),
        pa.array([each.version for each in requests for _ in each.rows], pa.string()),
        pa.array(np.concatenate([each.rows for each in requests]), pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(inputs.ravel()), type=schema.field("input").type),
        predictions,
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _feedback_table(feedback: list[RecordedFeedback]) -> pa.Table:
    columns = [
        pa.array([each.prediction_id for each in feedback for _ in each.rows], pa.string()),
        pa.array(np.concatenate([each.rows for each in feedback]), pa.int32()),
        _truth([each.truth for each in feedback]),
        _times(feedback),
    ]
    return pa.Table.from_arrays(columns, schema=FEEDBACK_SCHEMA if feedback[0].truth.ndim == 1 else VALUES_SCHEMA)


def _truth(truth: list[Any]) -> pa.Array:
    """Labels, or lists of values, which may differ in length where a model was replaced by another kind."""
    if truth[0].ndim == 1:
        return pa.array(np.concatenate(truth), pa.int32())
    return pa.array([row for each in truth for row in each], pa.list_(pa.float32()))


def _times(items: list[RecordedRequest] | list[RecordedFeedback]) -> pa.Array:
    micros = np.concatenate([np.full(len(each.rows), round(each.time * 1e6), np.int64) for each in items])
    return pa.array(micros).cast(pa.timestamp("us", tz="UTC"))
