"""Real stacks for tests: one for the session, and folders for stacks that a test breaks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stack_tools import RunningStack, Semr, find_leftovers, own_contract, require_programs

from semr.stack import control

# A state folder with a stack that is up already, or is to stay up: saves the start while one develops.
REUSED_STACK_VARIABLE = "SEMR_TEST_STACK"


@pytest.fixture(scope="session")
def semr() -> Semr:
    require_programs()
    return Semr()


@pytest.fixture(scope="session")
def leftovers() -> Callable[[Path], list[str]]:
    return find_leftovers


@pytest.fixture(scope="session")
def stack() -> Iterator[RunningStack]:
    """One stack for the whole session, with the contract of this process pointing at it."""
    require_programs()
    reused = os.environ.get(REUSED_STACK_VARIABLE)
    base = Path(tempfile.mkdtemp(prefix="semr-test-"))
    folder = Path(reused) if reused else base / ".semr"
    try:
        with own_contract() as point_at:
            settings = control.up(folder)
            point_at(folder)
            yield RunningStack(folder, settings)
        if not reused:
            control.down(folder)
            assert find_leftovers(folder) == []
    finally:
        if not reused:
            control.down(folder)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A state folder for a stack of the test's own; whatever the test leaves is ended."""
    require_programs()
    base = Path(tempfile.mkdtemp(prefix="semr-test-"))
    try:
        yield base / ".semr"
    finally:
        control.down(base / ".semr")
        shutil.rmtree(base, ignore_errors=True)
