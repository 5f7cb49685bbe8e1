"""`python -m workflow_examples.mnist.demo` as `make demo` runs it, and Ctrl-C in the middle of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_tools import start_demo

Leftovers = Callable[[Path], list[str]]

pytestmark = pytest.mark.slow


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
