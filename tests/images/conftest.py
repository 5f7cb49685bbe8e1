"""The images, built once for the session, and a stack for their containers to talk to."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image_tools import build, make_base, require_tools, size_mb
from stack_tools import RunningStack, own_contract, require_programs

from semr.stack import control


@pytest.fixture(scope="session")
def image(capfd_off: Callable[[str], None]) -> Callable[[str], str]:
    """Builds an image by its folder below docker_build, once."""
    require_tools()
    make_base()
    built: dict[str, str] = {}

    def get(folder: str) -> str:
        if folder not in built:
            started = time.monotonic()
            built[folder] = build(folder)
            capfd_off(f"{folder}: {size_mb(built[folder])} MB, built in {time.monotonic() - started:.0f} s")
        return built[folder]

    return get


@pytest.fixture(scope="session")
def capfd_off(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line although output is captured: sizes and times are worth seeing when all is well."""
    manager = request.config.pluginmanager.getplugin("capturemanager")

    def show(line: str) -> None:
        with manager.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)

    return show


@pytest.fixture(scope="session")
def stack() -> Iterator[RunningStack]:
    """A stack for the session, or the one of SEMR_TEST_STACK, with the contract of this process pointing at it."""
    require_tools()
    require_programs()
    reused = os.environ.get("SEMR_TEST_STACK")
    base = Path(tempfile.mkdtemp(prefix="semr-test-"))
    folder = Path(reused) if reused else base / ".semr"
    try:
        with own_contract() as point_at:
            settings = control.up(folder)
            point_at(folder)
            yield RunningStack(folder, settings)
    finally:
        if not reused:
            control.down(folder)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def contract(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of podman that give a container the stack's contract."""
    file = tmp_path_factory.mktemp("contract") / "env"
    pairs = {**stack.settings.contract(), **stack.settings.client_environment()}
    file.write_text("".join(f"{key}={value}\n" for key, value in pairs.items()), encoding="utf-8")
    file.chmod(0o600)
    return (f"--env-file={file}",)
