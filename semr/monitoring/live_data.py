"""Read back what `recorder` wrote: recent requests with their labels, for the next training; and forget the old ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from semr.errors import InvalidInputError
from semr.monitoring.recorder import TIME_FORMAT, live_folder
from semr.storage import CorruptDatasetError, ObjectStore

_TIME_CHARACTERS = len("yyyymmddThhmmss.ffffff")

LabelKey = tuple[str, int]
Truth = int | list[float]


def read_labelled_window(
    store: ObjectStore, model: str, *, since_seconds: float | None = None, max_rows: int | None = None
) -> pa.Table:
    """Recorded examples whose label is known, newest first.

    Args:
        store: where the model server records.
        model: name of the model.
        since_seconds: only examples of the last so many seconds.
        max_rows: at most so many.

    Returns:
        Columns prediction_id, time, version, row, input (fixed_size_list<float32>, row-major), prediction, and label
        (int32), or for a forecaster values (list<float32>); the shape of an input is in the schema's metadata under
        `shape`. Without any example it has no rows and no columns. Examples
        with another shape than the newest are left out. Of two labels for an example, the earlier counts.

    Raises:
        InvalidInputError: `max_rows` is below 1 or `since_seconds` is not above 0.
        DependencyUnavailableError: the object store does not answer.
        CorruptDatasetError: an object is not readable Parquet.
    """
    if (max_rows is not None and max_rows < 1) or (since_seconds is not None and since_seconds <= 0):
        raise InvalidInputError(f"A window of {max_rows} rows in {since_seconds} s holds nothing: ask for more.")
    since = None if since_seconds is None else datetime.now(timezone.utc) - timedelta(seconds=since_seconds)
    # An object's name has the time of its newest row, and a label is never older than its request.
    labels = _labels(store, model, since)
    found: list[pa.Table] = []
    rows = 0
    for path in _paths(store, model, "requests", since):
        table = _read(store, path)
        if table is None or (found and table.schema.metadata != found[0].schema.metadata):
            continue
        table = _with_labels(table, labels, since)
        if table.num_rows:
            found.append(table)
            rows += table.num_rows
        # Objects of several replicas overlap in time by no more than one flush: good enough to stop here.
        if max_rows is not None and rows >= max_rows:
            break
    if not found:
        return pa.table({})
    window = pa.concat_tables(found).sort_by(
        [("time", "descending"), ("prediction_id", "ascending"), ("row", "ascending")]
    )
    return window if max_rows is None else window.slice(0, max_rows)


def delete_older_than(store: ObjectStore, model: str, seconds: float) -> int:
    """Delete the recorded objects of `model` whose newest row is older; returns how many.

    Raises:
        DependencyUnavailableError: the object store does not answer; what was deleted until then is gone.
    """
    limit = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    deleted = 0
    for kind in ("requests", "feedback"):
        for path in _paths(store, model, kind, None):
            if _time_of(path) < limit:
                with store.connection.named_errors():
                    store.filesystem.delete_file(path)
                deleted += 1
    return deleted


def _paths(store: ObjectStore, model: str, kind: str, since: datetime | None) -> Iterator[str]:
    """Objects whose newest row is not before `since`, newest first."""
    folder = fs.FileSelector(f"{store.bucket}/{live_folder(model)}/{kind}", allow_not_found=True)
    with store.connection.named_errors():
        infos = store.filesystem.get_file_info(folder)
    paths = sorted((info.path for info in infos if info.path.endswith(".parquet")), reverse=True)
    for path in paths:
        if since is not None and _time_of(path) < since:
            return
        yield path


def _time_of(path: str) -> datetime:
    name = path.rsplit("/", 1)[-1][:_TIME_CHARACTERS]
    try:
        return datetime.strptime(name, TIME_FORMAT).replace(tzinfo=timezone.utc)
    except ValueError as error:
        raise CorruptDatasetError(
            f"s3://{path} was not written by SEMR: its name does not start with a time."
        ) from error


def _labels(store: ObjectStore, model: str, since: datetime | None) -> dict[LabelKey, Truth]:
    labels: dict[LabelKey, Truth] = {}
    for path in _paths(store, model, "feedback", since):
        table = _read(store, path)
        if table is None:
            continue
        keys = zip(table["prediction_id"].to_pylist(), table["row"].to_pylist(), strict=True)
        # From newest to oldest, and within an object from last to first: the earliest stays.
        truth = table["label" if "label" in table.column_names else "values"].to_pylist()
        labels.update(reversed(list(zip(keys, truth, strict=True))))
    return labels


def _with_labels(table: pa.Table, labels: dict[LabelKey, Truth], since: datetime | None) -> pa.Table:
    keys = zip(table["prediction_id"].to_pylist(), table["row"].to_pylist(), strict=True)
    truth = [labels.get(key) for key in keys]
    is_forecast = any(isinstance(each, list) for each in truth)
    if is_forecast:
        table = table.append_column("values", pa.array(truth, pa.list_(pa.float32())))
    else:
        table = table.append_column("label", pa.array(truth, pa.int32()))
    is_wanted = pc.is_valid(table.column(table.num_columns - 1))
    if since is not None:
        is_wanted = pc.and_(is_wanted, pc.greater_equal(table["time"], pa.scalar(since, table["time"].type)))
    return table.filter(is_wanted)


def _read(store: ObjectStore, path: str) -> pa.Table | None:
    """The object's table, None when it was deleted meanwhile."""
    try:
        with store.connection.named_errors(), store.filesystem.open_input_file(path) as file:
            data = file.readall()
    except FileNotFoundError:
        return None
    return _parse(path, data)


def _parse(path: str, data: bytes) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:  # Parquet reports damaged pages and footers as plain OSError
        raise CorruptDatasetError(f"s3://{path} is not readable Parquet: delete it to go on without it.") from error
