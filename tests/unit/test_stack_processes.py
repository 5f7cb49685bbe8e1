from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from semr.stack.processes import (
    SERVICE_VARIABLE,
    STACK_VARIABLE,
    end_processes,
    end_stack,
    is_marked,
    service_processes,
    stack_processes,
)

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)",
]

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def stack_id() -> str:
    return secrets.token_hex(4)


@pytest.fixture
def spawn(stack_id: str) -> Iterator[Spawn]:
    """Starts a command in a session of its own, marked as the stack's unless told otherwise."""
    started = []

    def start(command: list[str], marked: bool = True, **variables: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **({STACK_VARIABLE: stack_id} if marked else {}), **variables}
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _pids(processes: list[psutil.Process]) -> set[int]:
    return {process.pid for process in processes}


def test_only_marked_processes_are_the_stack_s(spawn: Spawn, stack_id: str, tmp_path: Path) -> None:
    mine, stranger = spawn(SLEEP), spawn(SLEEP, marked=False)
    other = spawn(SLEEP, marked=False, **{STACK_VARIABLE: "another"})
    assert _pids(stack_processes(stack_id, tmp_path)) == {mine.pid}
    assert is_marked(psutil.Process(mine.pid), stack_id)
    assert end_stack(stack_id, tmp_path) == []
    assert mine.poll() is not None
    assert stranger.poll() is None
    assert other.poll() is None


def test_child_that_dropped_its_environment_is_found(spawn: Spawn, stack_id: str, tmp_path: Path) -> None:
    script = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], env={}); time.sleep(60)"
    parent = spawn([sys.executable, "-c", script, *SLEEP])
    deadline = time.monotonic() + 10
    while len(stack_processes(stack_id, tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(parent.pid).children()
    assert _pids(stack_processes(stack_id, tmp_path)) == {parent.pid, children[0].pid}
    assert end_stack(stack_id, tmp_path) == []
    assert not children[0].is_running()


def test_orphan_that_dropped_its_environment_is_found_by_its_session(
    spawn: Spawn, stack_id: str, tmp_path: Path
) -> None:
    script = (
        "import subprocess, sys; subprocess.Popen(sys.argv[1:], env={});"
        "subprocess.Popen(sys.argv[1:]); print(flush=True)"
    )
    parent = spawn([sys.executable, "-c", script, *SLEEP])
    parent.wait()
    time.sleep(0.3)
    assert len(stack_processes(stack_id, tmp_path)) == 2
    assert len(service_processes(stack_id, "any", parent.pid)) == 2
    assert end_stack(stack_id, tmp_path) == []
    assert service_processes(stack_id, "any", parent.pid) == []


def test_service_processes_are_those_of_the_service(spawn: Spawn, stack_id: str) -> None:
    leader = spawn(SLEEP, **{SERVICE_VARIABLE: "ray"})
    driver = spawn(SLEEP, **{SERVICE_VARIABLE: "ray"})  # in a session of its own, as Ray starts its jobs
    other = spawn(SLEEP, **{SERVICE_VARIABLE: "mlflow"})
    found = _pids(service_processes(stack_id, "ray", leader.pid))
    assert found == {leader.pid, driver.pid}
    assert other.pid not in found


def test_process_that_ignores_the_request_is_killed(spawn: Spawn) -> None:
    process = spawn(STUBBORN)
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    assert end_processes([psutil.Process(process.pid)], grace_s=0.5) == []
    assert 0.4 < time.monotonic() - began < 5
    assert process.poll() is not None


def test_ending_twice_is_no_error(spawn: Spawn, stack_id: str, tmp_path: Path) -> None:
    process = psutil.Process(spawn(SLEEP).pid)
    assert end_processes([process], 1.0) == []
    assert end_processes([process], 1.0) == []
    assert end_stack(stack_id, tmp_path) == []


def test_caller_is_spared(stack_id: str, tmp_path: Path) -> None:
    script = (
        "import pathlib; from semr.stack.processes import end_stack;"
        f"print(end_stack({stack_id!r}, pathlib.Path({str(tmp_path)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, STACK_VARIABLE: stack_id},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]")
