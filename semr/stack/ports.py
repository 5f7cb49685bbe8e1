"""Ports of the embedded stack, all on the loopback interface.

A server that people visit prefers its customary port:

| server | port |
|---|---|
| object store (S3) | 9000 |
| MLflow | 5000 |
| Ray dashboard and Jobs API | 8265 |
| Ray Serve | 8000 |
| Prometheus | 9090 |
| Alertmanager | 9093 |

A customary port that is busy is moved into the range 21000 to 21999, where all internal ports lie too. The range is below
the ports that Linux (32768 and up) and macOS (49152 and up) hand out by themselves, and so is the range 31000 to 31999 that
SeaweedFS derives from it. A port, once chosen, is recorded and stays while it is free.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from semr.stack.errors import StackError
from semr.stack.state import read_json, write_private

LOOPBACK = "127.0.0.1"
MOVED_PORTS = range(21000, 22000)
_LOCK_TIMEOUT_S = 30


@dataclass(frozen=True)
class PortRequest:
    """A port that a server needs.

    Args:
        name: unique within a stack.
        preferred: customary port; None takes one from `MOVED_PORTS`.
        twin_offset: when not 0, port + twin_offset must be free as well.
    """

    name: str
    preferred: int | None = None
    twin_offset: int = 0

    def claims(self, port: int) -> set[int]:
        """All ports that are taken when `port` is chosen."""
        return {port, port + self.twin_offset} if self.twin_offset else {port}


@dataclass(frozen=True)
class PortOwner:
    """The process for which ports are reserved until it ends."""

    pid: int
    created: float

    @classmethod
    def this_process(cls) -> PortOwner:
        """The calling process as owner."""
        return cls(os.getpid(), psutil.Process().create_time())

    def alive(self) -> bool:
        """Whether the process still runs; a reused pid has another start time."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.created) < 1.0
        except psutil.NoSuchProcess:
            return False


def is_free(port: int) -> bool:
    """Whether nothing listens on loopback `port`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections in TIME_WAIT do not make a port busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # On macOS a loopback bind succeeds beside a listener on all interfaces.
        probe.settimeout(0.2)
        return probe.connect_ex((LOOPBACK, port)) != 0


class _Reservations:
    """Ports promised to stacks of this user whose servers may not listen yet; one file for the machine."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"semr-ports-{os.getuid()}.json"
        self.lock = FileLock(self._file.with_suffix(".lock"), timeout=_LOCK_TIMEOUT_S)

    def of_others(self, owner: PortOwner) -> dict[str, list[int]]:
        recorded = read_json(self._file) or {}
        return {key: ports for key, ports in recorded.items() if self._alive(key) and key != self._key(owner)}

    def write(self, reservations: Mapping[str, list[int]]) -> None:
        write_private(self._file, json.dumps(reservations))

    @staticmethod
    def _key(owner: PortOwner) -> str:
        return f"{owner.pid}@{owner.created}"

    @staticmethod
    def _alive(key: str) -> bool:
        pid, _, created = key.partition("@")
        return PortOwner(int(pid), float(created)).alive()

    def add(self, owner: PortOwner, ports: Iterable[int]) -> None:
        self.write({**self.of_others(owner), self._key(owner): sorted(ports)})


def allocate(
    requests: Iterable[PortRequest],
    recorded: Mapping[str, int],
    owner: PortOwner,
    lock_folder: Path | None = None,
) -> dict[str, int]:
    """Choose a free port for each request: the recorded one, else the preferred one, else one from `MOVED_PORTS`.

    Args:
        requests: what the servers need.
        recorded: choice of the last start, by name.
        owner: process that keeps the ports reserved against other stacks of this user.
        lock_folder: where the machine-wide lock lies; default: the system's temporary folder.

    Returns:
        Port by request name.

    Raises:
        StackError: no port is free, or another stack holds the lock for too long.
    """
    reservations = _Reservations(lock_folder or Path(tempfile.gettempdir()))
    try:
        with reservations.lock:
            taken = {port for ports in reservations.of_others(owner).values() for port in ports}
            wanted = list(requests)
            # Recorded ports first, so that one that must move does not take a port that another had.
            chosen = {
                request.name: recorded[request.name]
                for request in wanted
                if request.name in recorded and _is_available(request, recorded[request.name], taken)
            }
            mine = {
                port for request in wanted if request.name in chosen for port in request.claims(chosen[request.name])
            }
            for request in wanted:
                if request.name not in chosen:
                    chosen[request.name] = _choose(request, taken | mine)
                    mine |= request.claims(chosen[request.name])
            reservations.add(owner, mine)
            return chosen
    except Timeout as error:
        raise StackError(
            f"Another stack has been choosing ports for {_LOCK_TIMEOUT_S} s: wait for it, then run `semr up` again."
        ) from error


def _choose(request: PortRequest, taken: set[int]) -> int:
    preferred = [] if request.preferred is None else [request.preferred]
    for port in chain(preferred, MOVED_PORTS):
        if _is_available(request, port, taken):
            return port
    raise StackError(
        f"No port is free for {request.name} between {MOVED_PORTS.start} and {MOVED_PORTS.stop - 1}: "
        "end other stacks with `semr down`."
    )


def _is_available(request: PortRequest, port: int, taken: set[int]) -> bool:
    claims = request.claims(port)
    return not claims & taken and all(is_free(claim) for claim in claims)
