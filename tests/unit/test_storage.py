"""Dataset versions against a real S3 server: identity, atomicity, damage, and what happens when the server is away."""

from __future__ import annotations

import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from semr.errors import DependencyUnavailableError, InvalidInputError, SettingsError
from semr.settings import Settings
from semr.storage import CorruptDatasetError, DatasetNotFoundError, DatasetVersion, ObjectStore, Part
from semr.storage.fingerprint import table_sha256, type_name

KIND = pa.list_(pa.uint8(), 4)


def table(rows: int, start: int = 0, metadata: dict[str, str] | None = None) -> pa.Table:
    numbers = np.arange(start, start + rows)
    pixels = pa.array((numbers.repeat(4) % 251).astype(np.uint8))
    columns = [pa.FixedSizeListArray.from_arrays(pixels, type=KIND), pa.array(numbers % 10, pa.int8())]
    schema = pa.schema([("image", KIND), ("label", pa.int8())], metadata=metadata)
    return pa.Table.from_arrays(columns, schema=schema)


def write(store: ObjectStore, name: str, data: Any, **more: Any) -> DatasetVersion:
    return store.write_dataset(name, data, source="test", **more)


def objects(store: ObjectStore, under: str) -> list[str]:
    from pyarrow import fs

    selector = fs.FileSelector(f"{store.bucket}/{under}", recursive=True, allow_not_found=True)
    return sorted(info.path for info in store.filesystem.get_file_info(selector) if info.is_file)


def test_write_and_read_back(store: ObjectStore) -> None:
    train, test = (
        table(25, metadata={"height": "2", "width": "2"}),
        table(7, 25, metadata={"height": "2", "width": "2"}),
    )
    version = store.write_dataset(
        "digits", {"train": train, "test": test}, source="unit test", parents=["00ff"], rows_per_part=10
    )
    assert version.splits == {"train": 25, "test": 7} and version.rows == 32
    assert version.uri == f"s3://{store.bucket}/digits/versions/{version.version}"
    assert version.schema == (("image", "fixed_size_list<uint8>[4]"), ("label", "int8"))
    assert version.metadata == {"height": "2", "width": "2"}
    assert version.source == "unit test" and version.parents == ("00ff",)
    assert [part.rows for part in version.parts] == [7, 10, 10, 5]
    assert store.read(version, "train").equals(train)
    assert store.read(version, "train").schema.metadata == {b"height": b"2", b"width": b"2"}
    assert store.read(version, "test", columns=["label"]).column_names == ["label"]
    assert pq.read_table(store.paths(version, "train"), filesystem=store.filesystem).equals(train)
    store.verify(version)
    assert store.dataset("digits") == version == store.dataset("digits", version.version)
    assert DatasetVersion.from_json(version.to_json()) == version
    assert objects(store, "digits/versions") == [f"{store.bucket}/digits/versions/{version.version}/manifest.json"]


def test_same_content_has_the_same_id_however_it_is_batched(store: ObjectStore) -> None:
    whole = table(100)
    first = write(store, "a", {"all": whole}, rows_per_part=16)
    batchings: list[Any] = [
        pa.concat_tables([whole.slice(0, 37), whole.slice(37)]),
        iter(whole.to_batches(max_chunksize=7)),
        iter([whole.slice(at, 1).to_batches()[0] for at in range(100)]),
        pa.RecordBatchReader.from_batches(whole.schema, whole.to_batches(max_chunksize=16)),
        whole.slice(0, 100).combine_chunks(),
    ]
    again = [write(store, "a", {"all": batches}, rows_per_part=16) for batches in batchings]
    assert {version.version for version in again} == {first.version}
    assert all(version == first for version in again), "an existing version is returned as it was committed"
    assert write(store, "b", {"all": whole}, rows_per_part=16).version == first.version
    assert len(store.versions("a")) == 1 and len(objects(store, "a/parts")) == 7


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.slice(1),
        lambda data: data.take(pa.array([1, 0, *range(2, 30)])),
        lambda data: data.rename_columns(["image", "class"]),
        lambda data: data.set_column(1, "label", data["label"].cast(pa.int16())),
        lambda data: data.replace_schema_metadata({"height": "2"}),
        lambda data: data.select(["label", "image"]),
    ],
    ids=["rows", "order", "name", "type", "metadata", "columns"],
)
def test_other_content_has_another_id(store: ObjectStore, change: Callable[[pa.Table], pa.Table]) -> None:
    data = table(30)
    assert write(store, "a", {"all": data}).version != write(store, "a", {"all": change(data)}).version, (
        "a change of content has to show"
    )
    assert len(store.versions("a")) == 2


def test_notes_of_pandas_do_not_change_the_id(store: ObjectStore) -> None:
    data = table(5)
    noted = data.replace_schema_metadata({"pandas": '{"pandas_version": "9.9"}'})
    assert write(store, "a", {"all": data}) == write(store, "a", {"all": noted})


def test_latest_is_the_version_committed_last(store: ObjectStore) -> None:
    made = [write(store, "a", {"all": table(rows)}) for rows in (5, 3, 9, 1)]
    assert store.versions("a") == made
    assert store.dataset("a") == made[-1]
    assert write(store, "a", {"all": table(5)}) == made[0]
    assert store.dataset("a") == made[-1]


def test_parts_written_by_workers_are_committed_in_the_order_given(store: ObjectStore) -> None:
    tables = [table(10, start) for start in (0, 10, 20, 30)]
    remote = pickle.loads(pickle.dumps(store))
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda data: remote.write_part("a", data, "train"), tables))
    assert parts == [store.write_part("a", data, "train") for data in tables]
    assert store.versions("a") == [], "parts alone are invisible"
    version = store.commit("a", parts, tables[0].schema, source="workers")
    assert store.read(version, "train").equals(table(40))


def test_the_store_crosses_a_process_boundary_and_its_repr_keeps_the_secret(store: ObjectStore) -> None:
    version = write(store, "a", {"all": table(3)})
    assert pickle.loads(pickle.dumps(store)).dataset("a") == version
    assert pickle.loads(pickle.dumps(version)) == version
    assert "secret" not in repr(store) and store.connection.endpoint in repr(store)


def test_killed_writer_leaves_no_version_and_a_rerun_succeeds(
    store: ObjectStore, object_store_settings: Settings, tmp_path: Path
) -> None:
    program = """
import sys, time
import pyarrow as pa
from semr.settings import load_settings
from semr.storage import ObjectStore

def batches():
    for start in range(0, 40, 10):
        yield pa.record_batch({"n": list(range(start, start + 10))})
        if start == int(sys.argv[1]):
            time.sleep(0.1)
            print("halfway", flush=True)
            time.sleep(60)

store = ObjectStore.from_settings(load_settings())
print(store.write_dataset("a", {"all": batches()}, source="killed", rows_per_part=10).version)
"""
    settings = object_store_settings.model_copy(update={"datasets_bucket": store.bucket})
    environment = settings.contract()
    command = [sys.executable, "-c", program]
    with subprocess.Popen([*command, "20"], env=environment, stdout=subprocess.PIPE, cwd=Path.cwd()) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"halfway\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(10) == -signal.SIGKILL
    assert len(objects(store, "a/parts")) == 3, "the writer was in the middle of it"
    assert store.versions("a") == []
    with pytest.raises(DatasetNotFoundError):
        store.dataset("a")
    rerun = subprocess.run([*command, "-1"], env=environment, capture_output=True, check=True, text=True, timeout=60)
    assert [version.version for version in store.versions("a")] == [rerun.stdout.strip()]
    store.verify(store.dataset("a"))


def test_readers_never_see_half_a_version(store: ObjectStore) -> None:
    stop = threading.Event()
    seen: list[DatasetVersion] = []

    def watch() -> None:
        while not stop.is_set():
            for version in store.versions("a"):
                store.verify(version)
                seen.append(version)

    with ThreadPoolExecutor(2) as pool:
        watchers = [pool.submit(watch) for _ in range(2)]
        for rows in range(1, 6):
            write(store, "a", {"all": table(rows * 10)}, rows_per_part=4)
        stop.set()
        for watcher in watchers:
            watcher.result(30)
    assert seen


def test_two_writers_of_the_same_content_agree(store: ObjectStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(write, store, "a", {"all": table(50)}, rows_per_part=10) for _ in range(4)]
        assert len({future.result().version for future in futures}) == 1
    assert len(store.versions("a")) == 1


def test_changed_part_is_found(store: ObjectStore) -> None:
    version = write(store, "a", {"all": table(20)}, rows_per_part=10)
    overwrite(store, version.parts[1].key, parquet_bytes(table(10, 11)))
    with pytest.raises(CorruptDatasetError, match="content is not what was written"):
        store.verify(version)


@pytest.mark.parametrize("damage", ["shorter", "garbage", "flipped", "empty", "other rows"])
def test_damaged_part_is_found(store: ObjectStore, damage: str) -> None:
    version = write(store, "a", {"all": table(2000)})
    [path] = store.paths(version, "all")
    with store.filesystem.open_input_stream(path) as stream:
        good = stream.read()
    middle = len(good) // 4
    bad = {
        "shorter": good[:-100],
        "garbage": b"not Parquet" * 100,
        "flipped": good[:middle] + bytes(byte ^ 0xFF for byte in good[middle : middle + 64]) + good[middle + 64 :],
        "empty": b"",
        "other rows": parquet_bytes(table(3)),
    }[damage]
    overwrite(store, version.parts[0].key, bad)
    with pytest.raises(CorruptDatasetError, match=version.parts[0].key):
        store.verify(version)


def test_missing_part_is_found_and_writing_again_repairs_it(store: ObjectStore) -> None:
    version = write(store, "a", {"all": table(20)})
    store.filesystem.delete_file(store.paths(version, "all")[0])
    with pytest.raises(CorruptDatasetError, match="missing"):
        store.read(version, "all")
    write(store, "a", {"all": table(20)})
    store.verify(version)


def test_changed_manifest_is_found(store: ObjectStore) -> None:
    version = write(store, "a", {"all": table(20)})
    key = f"a/versions/{version.version}/manifest.json"
    overwrite(store, key, replace(version, metadata={"height": "9"}).to_json().encode())
    with pytest.raises(CorruptDatasetError, match="describes version"):
        store.verify(store.dataset("a"))
    overwrite(store, key, b"{")
    with pytest.raises(CorruptDatasetError, match=key):
        store.dataset("a")
    overwrite(store, key, json.dumps({"format_version": 99}).encode())
    with pytest.raises(CorruptDatasetError, match="format version 99"):
        store.versions("a")


def parquet_bytes(data: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink)
    return bytes(sink.getvalue())


def overwrite(store: ObjectStore, key: str, data: bytes) -> None:
    with store.filesystem.open_output_stream(f"{store.bucket}/{key}") as stream:
        stream.write(data)


def test_missing_things_have_a_named_error(store: ObjectStore) -> None:
    for wanted in ("latest", "0" * 16):
        with pytest.raises(DatasetNotFoundError, match="nothing"):
            store.dataset("nothing", wanted)
    assert store.versions("nothing") == []
    version = write(store, "a", {"train": table(3)})
    with pytest.raises(DatasetNotFoundError, match="0000000000000000"):
        store.dataset("a", "0" * 16)
    with pytest.raises(DatasetNotFoundError, match="no split 'test', only train"):
        store.read(version, "test")
    with pytest.raises(InvalidInputError, match="no column 'x', only image, label"):
        store.read(version, "train", columns=["x"])
    with pytest.raises(InvalidInputError, match="not a version"):
        store.dataset("a", "newest")


@pytest.mark.parametrize("name", ["", "a/b", "../a", "A", "-a", "a b", "ä", "a" * 64, ".", "a\n"])
def test_bad_names_are_refused(store: ObjectStore, name: str) -> None:
    with pytest.raises(InvalidInputError, match="not a valid dataset name"):
        write(store, name, {"all": table(1)})
    with pytest.raises(InvalidInputError, match="not a valid split name"):
        write(store, "a", {name: table(1)})


def test_empty_and_unequal_input_is_refused(store: ObjectStore) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("at least one split", {}),
        ("'b' of dataset 'a' has no rows", {"a": table(1), "b": iter([])}),
        ("'b' of dataset 'a' has no rows", {"b": table(0)}),
        ("one schema", {"a": iter([*table(1).to_batches(), pa.record_batch({"x": [1]})])}),
        ("differs from the first split", {"a": table(1), "b": pa.table({"x": [1]})}),
        ("names have to differ", {"a": pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])}),
        ("cannot be stored", {"a": pa.table({"x": pa.nulls(2)})}),
        ("would not give back column x of type timestamp", {"a": pa.table({"x": pa.array([1], pa.timestamp("s"))})}),
        ("would not give back column pair", {"a": NULLS}),
    ]
    for message, splits in cases:
        with pytest.raises(InvalidInputError, match=message):
            write(store, "a", splits)
    with pytest.raises(InvalidInputError, match="at least 1"):
        write(store, "a", {"all": table(1)}, rows_per_part=0)
    with pytest.raises(InvalidInputError, match="at least one part"):
        store.commit("a", [], table(1).schema, source="test")
    with pytest.raises(InvalidInputError, match="not a stored part"):
        store.commit("a", [Part("all", 1, "0" * 64, f"a/parts/{'0' * 64}.parquet")], table(1).schema, source="test")
    assert store.versions("a") == []


def test_store_that_is_down_is_named_in_bounded_time(object_store_settings: Settings, unused_port: int) -> None:
    port = unused_port
    away = ObjectStore.from_settings(
        object_store_settings.model_copy(update={"object_store_endpoint": f"http://127.0.0.1:{port}"})
    )
    part = Part("all", 1, "0" * 64, "a/parts/0.parquet")
    version = DatasetVersion("a", "0" * 16, "s3://x", {"all": 1}, (("n", "int64"),), "now", "test", (part,))
    calls: list[Callable[[], object]] = [
        away.check,
        lambda: away.dataset("a"),
        lambda: away.dataset("a", "0" * 16),
        lambda: away.write_part("a", table(1), "all"),
        lambda: away.commit("a", [part], table(1).schema, source="test"),
        lambda: away.read(version, "all"),
    ]
    for call in calls:
        started = time.monotonic()
        with pytest.raises(DependencyUnavailableError, match=f"object store at http://127.0.0.1:{port}") as caught:
            call()
        assert time.monotonic() - started < 15
        assert caught.value.service == "object store"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connections.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in connections:
            connection.close()


def test_store_that_never_answers_is_named_in_bounded_time(object_store_settings: Settings, silent_server: str) -> None:
    silent = ObjectStore.from_settings(
        object_store_settings.model_copy(update={"object_store_endpoint": silent_server})
    )
    started = time.monotonic()
    with pytest.raises(DependencyUnavailableError, match="object store"):
        silent.check()
    assert time.monotonic() - started < 16


@pytest.mark.slow
def test_reading_from_a_store_that_never_answers_ends(object_store_settings: Settings, silent_server: str) -> None:
    silent = ObjectStore.from_settings(
        object_store_settings.model_copy(update={"object_store_endpoint": silent_server})
    )
    started = time.monotonic()
    with pytest.raises(DependencyUnavailableError):
        silent.dataset("a")
    assert time.monotonic() - started < 70


@pytest.mark.parametrize(
    "wrong", [{"object_store_access_key": "wrong"}, {"object_store_secret_key": SecretStr("wrong")}]
)
def test_refused_credentials_are_a_setting_to_check(object_store_settings: Settings, wrong: dict[str, Any]) -> None:
    stranger = ObjectStore.from_settings(object_store_settings.model_copy(update=wrong))
    for call in (stranger.check, lambda: stranger.versions("a"), lambda: stranger.write_part("a", table(1), "all")):
        with pytest.raises(SettingsError, match="SEMR_OBJECT_STORE_ACCESS_KEY and SEMR_OBJECT_STORE_SECRET_KEY"):
            call()


def test_the_first_failure_is_told_not_that_of_closing(store: ObjectStore) -> None:
    """pyarrow closes a stream after a write that failed; what closing raises does not tell why the write failed."""
    told = pytest.raises(DependencyUnavailableError, match=r"INTERNAL_FAILURE.* whose disk is full")
    with told, store.connection.named_errors():
        try:
            raise OSError("AWS Error INTERNAL_FAILURE during CreateMultipartUpload operation")
        finally:
            raise OSError("Operation on closed stream")


def test_settings_without_a_store_tell_what_is_missing() -> None:
    with pytest.raises(SettingsError, match="SEMR_OBJECT_STORE_ENDPOINT"):
        ObjectStore.from_settings(Settings(object_store_endpoint=None))


NULLS = pa.table(
    {
        "bool": pa.array([True, None, False, True]),
        "int": pa.array([1, None, 3, 4], pa.int32()),
        "float": pa.array([1.5, None, float("nan"), -0.0]),
        "text": pa.array(["ä", None, "", "text"]),
        "bytes": pa.array([b"\0", None, b"", b"x"], pa.large_binary()),
        "fixed": pa.array([b"ab", None, b"cd", b"ef"], pa.binary(2)),
        "time": pa.array([0, None, 2, 3], pa.timestamp("us", "UTC")),
        "list": pa.array([[1, None], None, [], [2, 3]]),
        "pair": pa.array([[1, 2], None, [3, None], [5, 6]], pa.list_(pa.float32(), 2)),
        "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}, {"a": 2, "b": None}]),
        "decimal": pa.array([None, 1, 2, 3]).cast(pa.decimal128(21, 2)),
    }
)


def test_fingerprint_survives_parquet_slices_and_chunks(store: ObjectStore) -> None:
    data = pa.concat_tables([NULLS] * 5)
    expected = table_sha256(data)
    assert table_sha256(data.combine_chunks()) == expected
    assert table_sha256(pa.concat_tables([data.slice(3, 1), data]).slice(1)) == expected
    assert table_sha256(pa.concat_tables([data.slice(0, 9), data.slice(9)]).combine_chunks()) == expected
    stored = data.drop_columns("pair")
    version = write(store, "nulls", {"all": stored})
    assert version.parts[0].sha256 == table_sha256(stored)
    store.verify(version)


@pytest.mark.parametrize("column", NULLS.column_names)
def test_fingerprint_sees_every_type(column: str) -> None:
    data = NULLS.select([column])
    seen = {
        table_sha256(data.take(pa.array(rows))) for rows in ([0, 1, 2, 3], [0, 1, 3, 2], [1, 0, 2, 3], [0, 1, 2], [3])
    }
    assert len(seen) == 5


def test_fingerprint_ignores_what_lies_under_nulls() -> None:
    bitmap = pa.py_buffer(b"\x05")
    arrays = [
        pa.Array.from_buffers(pa.int64(), 3, [bitmap, pa.py_buffer(np.array([1, hidden, 3]).tobytes())])
        for hidden in (0, 77)
    ]
    assert len({table_sha256(pa.table({"n": array})) for array in arrays}) == 1


def test_fingerprint_of_known_content_never_changes() -> None:
    # A change of this value would give every stored dataset a new id.
    assert table_sha256(table(3, metadata={"height": "2"})) == KNOWN
    assert type_name(pa.list_(pa.field("any name", pa.list_(pa.int8(), 3)))) == "list<fixed_size_list<int8>[3]>"


KNOWN = "107297c48929eaf346c3035978f13c32b6b18e8de100bf765f817728baf5cd7b"


def test_versions_travel_between_flyte_tasks(store: ObjectStore) -> None:
    from flytekit import task, workflow

    @task  # type: ignore[untyped-decorator]
    def rows_of(version: DatasetVersion) -> int:
        return version.rows + len(version.parts) + len(version.schema[0])

    @task  # type: ignore[untyped-decorator]
    def same(version: DatasetVersion) -> DatasetVersion:
        return version

    @workflow  # type: ignore[untyped-decorator]
    def both(version: DatasetVersion) -> tuple[int, DatasetVersion]:
        return rows_of(version=same(version=version)), same(version=version)

    version = write(store, "a", {"all": table(7, metadata={"height": "2"})})
    rows, returned = both(version=version)
    assert rows == 7 + 1 + 2
    assert returned == version
