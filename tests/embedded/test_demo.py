"""`python -m workflow_examples.mnist.demo` as `make demo` runs it, and Ctrl-C in the middle of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stack_tools import Semr

from semr.settings import ENV_PREFIX
from semr.stack import control

Leftovers = Callable[[Path], list[str]]

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def start_demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo in the folder above the state folder, in a process group of its own as a terminal makes one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "workflow_examples.mnist.demo", *arguments],
        cwd=folder.parent,
        env={**environment, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def interrupt(demo: subprocess.Popen[str]) -> str:
    """Ctrl-C: the signal goes to the whole foreground group."""
    os.killpg(demo.pid, signal.SIGINT)
    output, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, output
    assert "Traceback" not in output, output
    return output


def log_has(folder: Path, words: str) -> bool:
    log = folder / "logs" / "demo.log"
    return log.is_file() and words in log.read_text()


@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_ctrl_c_while_the_stack_starts(folder: Path, leftovers: Leftovers, seconds: float) -> None:
    demo = start_demo(folder)
    wait_for((folder / "identity.json").exists, 60)
    time.sleep(seconds)
    assert "interrupted" in interrupt(demo)
    assert leftovers(folder) == []


@pytest.mark.parametrize("keep", [False, True])
def test_ctrl_c_during_training_leaves_nothing(folder: Path, leftovers: Leftovers, keep: bool) -> None:
    """`--keep` is about a demo that ends well: an interrupted one cleans up after itself."""
    demo = start_demo(folder, *(["--keep"] if keep else []))
    wait_for(lambda: log_has(folder, "epoch 2/"), 240)
    assert "interrupted" in interrupt(demo)
    assert leftovers(folder) == []


def test_the_demo_runs_through_and_keeps_the_stack(semr: Semr, folder: Path, leftovers: Leftovers) -> None:
    demo = start_demo(folder, "--keep")
    output, _ = demo.communicate(timeout=400)
    assert demo.returncode == 0, output
    for words in ("What happened", "holdout accuracy", "200 sent, 0 failed", "champion", "The stack stays up"):
        assert words in output
    assert control.status(folder).healthy
    # A second one on the same stack that is interrupted leaves the stack, which it has not started, and stops its job.
    (folder / "logs" / "demo.log").unlink()
    again = start_demo(folder)
    wait_for(lambda: log_has(folder, "epoch 1/"), 240)
    interrupt(again)
    assert control.status(folder).healthy
    assert semr("down", "--dir", str(folder)).returncode == 0
    assert leftovers(folder) == []
