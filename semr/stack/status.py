"""What the supervisor says about its services, as a file that `semr up` and `semr status` read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum

from semr.stack.state import StateFolder, read_json, write_private

# In the order of `semr.stack.services.service_classes`.
SERVICE_NAMES = ("object-store", "mlflow", "ray", "prometheus", "alertmanager", "evolution")


class ServiceState(str, Enum):
    """State of one service."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"  # runs, but its health check fails
    BACKING_OFF = "backing off"  # ended by itself; started again after a pause
    FAILED = "failed"
    STOPPED = "stopped"


class StackState(str, Enum):
    """State of the stack as a whole."""

    STARTING = "starting"
    RUNNING = "running"  # every service was healthy once
    STOPPING = "stopping"
    FAILED = "failed"  # the start was given up
    STOPPED = "stopped"


@dataclass
class ServiceStatus:
    """One service. Times are seconds since the epoch.

    Args:
        name: name of the service.
        state: what it does now.
        url: where it answers.
        detail: one phrase for a person: what is awaited, or what went wrong.
        pid: its main process.
        restarts: starts after the first, since `semr up`.
        started: start of the main process.
        healthy_since: when its health check began to pass.
    """

    name: str
    state: ServiceState
    url: str
    detail: str = ""
    pid: int | None = None
    restarts: int = 0
    started: float | None = None
    healthy_since: float | None = None


@dataclass
class StackStatus:
    """The stack: its supervisor's pid, its services, and why it failed."""

    state: StackState
    supervisor_pid: int | None = None
    failed_service: str | None = None
    error: str | None = None
    services: list[ServiceStatus] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether every service is healthy."""
        return bool(self.services) and all(service.state is ServiceState.HEALTHY for service in self.services)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2)


def write_status(folder: StateFolder, status: StackStatus) -> None:
    """Publish `status`."""
    write_private(folder.status_file, status.to_json())


def read_status(folder: StateFolder) -> StackStatus | None:
    """The published status; None when there is none. It may be of a supervisor that is no more."""
    recorded = read_json(folder.status_file)
    if recorded is None:
        return None
    try:
        services = [
            ServiceStatus(**{**service, "state": ServiceState(service["state"])}) for service in recorded["services"]
        ]
        return StackStatus(**{**recorded, "state": StackState(recorded["state"]), "services": services})
    except (KeyError, TypeError, ValueError):  # written by another version of SEMR
        return None
