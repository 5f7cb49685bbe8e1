"""What tests of the embedded stack share: `semr` as a user runs it, and a look at what a stack left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from semr.settings import ENV_FILE_NAME, ENV_FILE_VARIABLE, ENV_PREFIX, Settings, get_settings
from semr.stack.context import find_program


@dataclass(frozen=True)
class RunningStack:
    """A stack that is up: its state folder and its contract."""

    folder: Path
    settings: Settings


@contextmanager
def own_contract() -> Iterator[Callable[[Path], None]]:
    """Takes the contract out of this process for a while; what it gives points the process at a stack that is up."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(ENV_PREFIX)}
    for name in kept:
        del os.environ[name]

    def point_at(folder: Path) -> None:
        os.environ[ENV_FILE_VARIABLE] = str(folder / ENV_FILE_NAME)
        get_settings.cache_clear()

    try:
        yield point_at
    finally:
        os.environ.pop(ENV_FILE_VARIABLE, None)
        os.environ.update(kept)
        get_settings.cache_clear()


class Semr:
    """Runs `semr` as a user does: a process of its own, with nothing of the contract in its environment."""

    def __init__(self) -> None:
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX) and name != "COLUMNS"
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "semr.cli", *arguments]

    def __call__(
        self, *arguments: str, timeout: float = 300, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def require_programs() -> None:
    """Skip when servers that pip cannot install are missing."""
    missing = [
        names[0]
        for names in (("prometheus",), ("prometheus-alertmanager", "alertmanager"))
        if find_program(*names) is None
    ]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: run helper_scripts/env-prepare.sh")


def find_leftovers(folder: Path) -> list[str]:
    """What is left of the stack in `folder`, found without the stack's own code: processes, listening ports, sockets."""
    identity = json.loads((folder / "identity.json").read_text())
    ports_file = folder / "ports.json"
    ports: dict[str, int] = json.loads(ports_file.read_text()) if ports_file.exists() else {}
    left = []
    traces = (str(folder), identity["runtime"])
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            marked = process.environ().get("SEMR_STACK_ID") == identity["stack_id"]
            told = any(trace in argument for argument in process.cmdline() for trace in traces)
            opened = any(file.path.startswith(traces) for file in process.open_files())
            if process.status() != psutil.STATUS_ZOMBIE and (marked or told or opened):
                left.append(f"process {process.pid} {process.cmdline()}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    for name, port in ports.items():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                left.append(f"port {port} of {name}")
    if Path(identity["runtime"]).exists():
        left.append(f"folder {identity['runtime']}")
    left += [
        str(path) for port in ports.values() for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock") if path.exists()
    ]
    return left
