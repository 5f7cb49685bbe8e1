"""A disk that fills up under a stack: what is stored stays readable, what is refused is named, and room mends all by itself.

The disk is a file system in memory, of which the mount decides how full it is; mounting one needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack_tools import Semr, find_leftovers, own_contract, require_programs

from semr.errors import DependencyUnavailableError, SemrError
from semr.evolution.client import EvolutionClient
from semr.settings import Settings
from semr.stack import control
from semr.stack.status import ServiceState, ServiceStatus
from semr.storage import ObjectStore
from semr.tracking import connect, named_errors

pytestmark = pytest.mark.slow

WHOLE = 3 * 2**30
# SeaweedFS looks at the disk once a minute.
NOTICED_SECONDS = 90.0


class Disk:
    """A small disk of its own, mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mount("-t", "tmpfs", "-o", f"size={WHOLE}", "tmpfs")

    def fill(self, free: int = 0) -> None:
        """Leave `free` bytes."""
        self._mount("-o", f"remount,size={shutil.disk_usage(self.path).used + free}")

    def clear(self) -> None:
        """Leave as much as there ever was."""
        self._mount("-o", f"remount,size={WHOLE}")

    def remove(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments, str(self.path)], check=True, capture_output=True)


@pytest.fixture
def disk() -> Iterator[Disk]:
    require_programs()
    if os.geteuid() != 0:
        pytest.skip("a disk that can be filled is a mount, which only root can make")
    base = Path(tempfile.mkdtemp(prefix="semr-test-"))
    try:
        disk = Disk(base)
    except subprocess.CalledProcessError as error:
        base.rmdir()
        pytest.skip(f"nothing can be mounted here: {error.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        control.down(base / ".semr")
        disk.remove()
        base.rmdir()


def _wait_for(reached: Callable[[], bool], what: str, seconds: float = NOTICED_SECONDS) -> float:
    """Seconds until it was reached."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < seconds, f"{what} not within {seconds:.0f} s"
        time.sleep(1)
    return time.monotonic() - began


def _object_store(folder: Path) -> ServiceStatus:
    return next(service for service in control.status(folder).services if service.name == "object-store")


def _write(store: ObjectStore, name: str) -> None:
    with store.connection.named_errors(), store.filesystem.open_output_stream(f"semr-datasets/{name}") as stream:
        stream.write(b"data" * 10_000)


def _fails(call: Callable[[], Any]) -> bool:
    try:
        call()
    except SemrError:
        return True
    return False


def _value(settings: Settings, query: str) -> float:
    answer = httpx.get(f"{settings.need('prometheus_url')}/api/v1/query", params={"query": query}).json()
    found = answer["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


def test_a_disk_that_fills_up_and_has_room_again(disk: Disk, semr: Semr) -> None:
    folder = disk.path / ".semr"
    with own_contract() as point_at:
        settings = control.up(folder)
        point_at(folder)
        store = ObjectStore.from_settings(settings)
        evolution = EvolutionClient(settings)
        mlflow = connect(settings)
        _write(store, "before")
        run = mlflow.create_run("0").info.run_id
        mlflow.log_text(run, "kept", "kept.txt")
        evolution.pause("mnist", "before")

        disk.fill()
        # Known at once, though the supervisor can write its status no more.
        shown = semr("status", "--dir", str(folder))
        assert shown.returncode == 1
        assert "unhealthy" in shown.stdout
        assert "disk full: 0 MB free, new data need 100 MB" in shown.stdout

        # Refused, within bounds and by name.
        _wait_for(lambda: _fails(lambda: _write(store, "full")), "a refusal")
        with pytest.raises(DependencyUnavailableError, match=r"object store at .* whose disk is full"):
            _write(store, "full")
        with pytest.raises(DependencyUnavailableError, match="MLflow"), named_errors(settings):
            for _ in range(1000):  # until the pages that the database has already are full
                mlflow.log_param(run, os.urandom(8).hex(), "x" * 6000)
        with pytest.raises(SemrError, match=r"ledger .* cannot be written"):
            for number in range(1000):
                (evolution.resume if number % 2 == 0 else evolution.pause)("mnist", "x" * 500)

        # What is stored can be read.
        with store.filesystem.open_input_stream("semr-datasets/before") as stream:
            assert stream.read() == b"data" * 10_000
        assert mlflow.get_run(run).info.run_id == run
        assert [model["model"] for model in evolution.models()] == ["mnist"]
        assert not [service for service in control.status(folder).services if service.restarts]

        disk.clear()
        _wait_for(lambda: not _fails(lambda: _write(store, "after")), "a write")
        _wait_for(lambda: control.status(folder).healthy, "health")
        assert semr("status", "--dir", str(folder)).returncode == 0
        assert _object_store(folder).state is ServiceState.HEALTHY
        mlflow.log_text(run, "later", "later.txt")
        assert mlflow.download_artifacts(run, "kept.txt", str(disk.path))
        evolution.pause("mnist", "after")
        assert evolution.resume("mnist", "after")
        with store.filesystem.open_input_stream("semr-datasets/before") as stream:
            assert stream.read() == b"data" * 10_000
        _wait_for(lambda: _value(settings, "count_over_time(up{job='mlflow'}[20s])") > 0, "a new sample of Prometheus")
    control.down(folder)
    assert find_leftovers(folder) == []


def test_a_stack_that_is_started_on_a_disk_without_room_says_so(disk: Disk, semr: Semr) -> None:
    folder = disk.path / ".semr"
    (disk.path / "something").write_bytes(bytes(2**16))
    disk.fill()
    began = time.monotonic()
    failed = semr("up", "--dir", str(folder))
    assert time.monotonic() - began < 30
    assert failed.returncode == 2
    assert "No space left on device" in failed.stderr
    assert "Traceback" not in failed.stderr
    disk.fill(60 * 10**6)
    up = semr("up", "--dir", str(folder))
    assert up.returncode == 0, up.stderr
    assert "Warning: disk full" in up.stderr
    assert _object_store(folder).state is ServiceState.UNHEALTHY
    disk.clear()
    _wait_for(lambda: control.status(folder).healthy, "health")


def test_many_buckets_fit_on_a_disk_with_room(disk: Disk) -> None:
    """Each bucket begins a volume that may become as large as a hundredth of the disk: that alone fills no disk."""
    folder = disk.path / ".semr"
    settings = control.up(folder)
    store = ObjectStore.from_settings(settings)
    for number in range(80):
        with store.connection.named_errors(), store.filesystem.open_output_stream(f"bucket-{number}/x") as stream:
            stream.write(b"x")
