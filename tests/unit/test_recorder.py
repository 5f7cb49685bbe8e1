"""Recording on a real S3 server: what comes back, bounded memory while the store is away, retention."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from semr.errors import InvalidInputError
from semr.monitoring.live_data import delete_older_than, read_labelled_window
from semr.monitoring.recorder import SHAPE_KEY, RecordedFeedback, RecordedRequest, Recorder
from semr.settings import Settings
from semr.storage import CorruptDatasetError, ObjectStore


class Tally:
    """Counts what a recorder reports."""

    def __init__(self) -> None:
        self.recorded: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def add_recorded(self, kind: str, rows: int) -> None:
        self.recorded[kind] += rows

    def add_dropped(self, kind: str, rows: int) -> None:
        self.dropped[kind] += rows


def open_recorder(store: ObjectStore, tally: Tally, **options: float) -> Recorder:
    return Recorder(store, "m", tally.add_recorded, tally.add_dropped, **options)  # type: ignore[arg-type]


def request(token: str, rows: int = 2, at: float | None = None, size: int = 4, version: str = "1") -> RecordedRequest:
    return RecordedRequest(
        prediction_id=token,
        time=time.time() if at is None else at,
        version=version,
        rows=np.arange(rows, dtype=np.int32),
        inputs=np.arange(rows * size, dtype=np.float32).reshape(rows, size, 1),
        classes=np.arange(rows),
    )


def labels(token: str, *given: int, at: float | None = None) -> RecordedFeedback:
    rows = np.arange(len(given), dtype=np.int32)
    return RecordedFeedback(token, time.time() if at is None else at, rows, np.array(given, np.int32))


def test_labelled_examples_come_back_newest_first(store: ObjectStore) -> None:
    tally = Tally()
    recorder = open_recorder(store, tally)
    now = time.time()
    recorder.add_request(request("old", at=now - 100))
    recorder.add_request(request("new", at=now))
    recorder.add_request(request("without labels", at=now))
    recorder.add_feedback(labels("new", 7, 8))
    recorder.add_feedback(labels("old", 5))
    recorder.add_feedback(labels("unknown", 5))
    recorder.close()
    assert tally.recorded == {"requests": 6, "feedback": 4}
    window = read_labelled_window(store, "m")
    assert window["prediction_id"].to_pylist() == ["new", "new", "old"]
    assert window["label"].to_pylist() == [7, 8, 5]
    assert window["prediction"].to_pylist() == [0, 1, 0]
    assert window["input"].to_pylist()[1] == [4, 5, 6, 7]
    assert window["version"].to_pylist() == ["1"] * 3
    assert window.schema.metadata[SHAPE_KEY] == b"4,1"
    assert read_labelled_window(store, "m", max_rows=1)["label"].to_pylist() == [7]
    assert read_labelled_window(store, "m", since_seconds=50)["label"].to_pylist() == [7, 8]


def test_labels_may_come_much_later_and_from_another_replica(store: ObjectStore) -> None:
    first, second = open_recorder(store, Tally()), open_recorder(store, Tally())
    first.add_request(request("a", rows=1))
    first.close()
    time.sleep(0.05)
    second.add_feedback(labels("a", 3))
    second.close()
    third = open_recorder(store, Tally())
    third.add_feedback(labels("a", 4))
    third.close()
    assert read_labelled_window(store, "m")["label"].to_pylist() == [3]


def test_a_full_interval_is_written_without_closing(store: ObjectStore) -> None:
    tally = Tally()
    recorder = open_recorder(store, tally, flush_seconds=0.2)
    recorder.add_request(request("a"))
    deadline = time.monotonic() + 20
    while not tally.recorded["requests"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    recorder.close()


def test_nothing_recorded_is_an_empty_window(store: ObjectStore) -> None:
    assert read_labelled_window(store, "m").num_rows == 0
    with pytest.raises(InvalidInputError, match="holds nothing"):
        read_labelled_window(store, "m", max_rows=0)


def test_only_the_newest_shape_is_returned(store: ObjectStore) -> None:
    for token, size, at in (("small", 4, time.time() - 60), ("large", 9, time.time())):
        recorder = open_recorder(store, Tally())
        recorder.add_request(request(token, rows=1, size=size, at=at))
        recorder.add_feedback(labels(token, 1))
        recorder.close()
    assert read_labelled_window(store, "m")["prediction_id"].to_pylist() == ["large"]


def test_rows_above_the_rate_are_sampled(store: ObjectStore) -> None:
    tally = Tally()
    recorder = open_recorder(store, tally, rows_per_second=10)
    recorder.add_request(request("a", rows=1000))
    recorder.add_feedback(labels("a", *range(1000)))
    recorder.close()
    assert (tally.recorded["requests"], tally.dropped["requests"]) == (20, 980)
    window = read_labelled_window(store, "m")
    assert window["row"].to_pylist() == window["label"].to_pylist()


def test_without_a_store_memory_is_bounded_and_losses_are_counted(unused_port: int) -> None:
    settings = Settings(
        object_store_endpoint=f"http://127.0.0.1:{unused_port}",
        object_store_access_key="a",
        object_store_secret_key="b",  # type: ignore[arg-type]
    )
    tally = Tally()
    recorder = open_recorder(ObjectStore.from_settings(settings), tally, buffer_bytes=5000, flush_seconds=0.1)
    started = time.monotonic()
    for _ in range(100):
        recorder.add_request(request("a"))
    assert time.monotonic() - started < 1
    recorder.close()
    assert tally.recorded == {}
    assert tally.dropped["requests"] == 200


def test_a_damaged_object_is_named(store: ObjectStore) -> None:
    recorder = open_recorder(store, Tally())
    recorder.add_feedback(labels("a", 1))
    recorder.close()
    path = f"{store.bucket}/m-live/feedback/20990101T000000.000000-x.parquet"
    with store.filesystem.open_output_stream(path) as stream:
        stream.write(b"no parquet")
    with pytest.raises(CorruptDatasetError, match="20990101"):
        read_labelled_window(store, "m")


def test_retention_deletes_by_age(store: ObjectStore) -> None:
    for age in (1000, 0):
        recorder = open_recorder(store, Tally())
        recorder.add_request(request(f"{age}", rows=1, at=time.time() - age))
        recorder.add_feedback(labels(f"{age}", 1, at=time.time() - age))
        recorder.close()
    assert delete_older_than(store, "m", 500) == 2
    assert delete_older_than(store, "m", 500) == 0
    assert read_labelled_window(store, "m")["prediction_id"].to_pylist() == ["0"]
