"""Launchers: start the workflow of a launch, look how it is, end it. This one runs it in a process of this machine.

The process takes the launch out of the ledger by itself (`run_launch`), which makes starting it a second time harmless. It
leaves the session and the family of the service, so that it survives the end of the service, however that comes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import psutil

from semr.errors import SemrError
from semr.evolution.launch import Launch, Outcome
from semr.stack.processes import SERVICE_VARIABLE

RUNNER = "semr.evolution.run_launch"
# The process only forks and ends; an interpreter on a busy machine may need seconds to start.
_SPAWN_SECONDS = 60.0
_GRACE_SECONDS = 10.0


class LaunchError(SemrError):
    """The launcher cannot start a launch, and trying again may help."""


class Sight(str, Enum):
    """How a launch looks to its launcher."""

    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"


@dataclass(frozen=True)
class Progress:
    """What a launcher sees of a launch; `outcome` when it ended and the launcher, not the process, tells how."""

    sight: Sight
    outcome: Outcome | None = None


class Launcher(Protocol):
    """Runs the workflows of launches; for every call the launch is known by its id alone."""

    claims: bool
    """Whether the started process claims the launch in the ledger; otherwise it runs when `start` returns."""

    def start(self, launch: Launch) -> None:
        """Start the launch, or make sure that it is started.

        Raises:
            LaunchError: it was not possible this time.
            DependencyUnavailableError: the backend does not answer.
            InvalidInputError: it will never be possible.
        """

    def look(self, launch: Launch) -> Progress:
        """How the running launch is.

        Raises:
            DependencyUnavailableError: the backend does not answer.
        """

    def stop(self, launch: Launch) -> None:
        """End the running launch with all that it started.

        Raises:
            DependencyUnavailableError: the backend does not answer.
        """


class LocalLauncher:
    """Runs launches as processes of this machine.

    Args:
        ledger: file of the ledger.
        logs: folder for one log a launch.
        environment: variables over those of the service, such as the contract.
    """

    claims = True

    def __init__(self, ledger: Path, logs: Path, environment: Mapping[str, str]) -> None:
        self._ledger = ledger.resolve()
        self._logs = logs
        self._environment = dict(environment)

    def start(self, launch: Launch) -> None:
        """See `Launcher.start`."""
        # Marked as part of a stack, it ends with the stack; marked as part of the service, it would end with the service.
        inherited = {name: value for name, value in os.environ.items() if name != SERVICE_VARIABLE}
        try:
            self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.log(launch.id).open("ab") as log:
                done = subprocess.run(
                    [sys.executable, "-m", RUNNER, str(self._ledger), launch.id],
                    env={**inherited, "PYTHONUNBUFFERED": "1", **self._environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    timeout=_SPAWN_SECONDS,
                    check=False,
                )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LaunchError(f"No process could be started for launch {launch.id}: {error}.") from error
        if done.returncode != 0:
            raise LaunchError(
                f"The process of launch {launch.id} ended with code {done.returncode} before it began: "
                f"see {self.log(launch.id)}."
            )

    def look(self, launch: Launch) -> Progress:
        """See `Launcher.look`; how it ended is in the ledger."""
        return Progress(Sight.LOST if self._process(launch) is None else Sight.RUNNING)

    def stop(self, launch: Launch) -> None:
        """See `Launcher.stop`."""
        process = self._process(launch)
        if process is None:
            return
        family = [process, *process.children(recursive=True)]
        self._signal_session(process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=_GRACE_SECONDS)
        if alive:
            self._signal_session(process.pid, signal.SIGKILL)
            for member in alive:
                if member.is_running():
                    member.kill()

    def log(self, launch_id: str) -> Path:
        """Where the output of a launch goes."""
        return self._logs / f"{launch_id}.log"

    @staticmethod
    def _process(launch: Launch) -> psutil.Process | None:
        """The living process of the launch. A reused pid is recognised by its command: start times move with the clock."""
        if launch.pid is None:
            return None
        try:
            process = psutil.Process(launch.pid)
            command = process.cmdline()
            is_ours = RUNNER in command and launch.id in command and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return process if is_ours else None

    @staticmethod
    def _signal_session(pid: int, number: signal.Signals) -> None:
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return
