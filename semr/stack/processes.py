"""Find and end every process of a stack.

Each process of a stack has its id in the environment variable `SEMR_STACK_ID`. Some rewrite their environment (Ray's agents
write their title over it), so a process also belongs to a stack as a descendant or in the session of a marked one, or with a
file of the stack's runtime folder open. `SEMR_STACK_SERVICE` tells to which service a process belongs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

STACK_VARIABLE = "SEMR_STACK_ID"
SERVICE_VARIABLE = "SEMR_STACK_SERVICE"
_KILL_WAIT_S = 10.0
# Exceptions of psutil for a process that ended meanwhile or belongs to somebody else.
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def is_marked(process: psutil.Process, stack_id: str, service: str | None = None) -> bool:
    """Whether `process` has the stack's id (and the name of `service`, when given) in its environment."""
    try:
        environment = process.environ()
    except (*_GONE, OSError):
        return False
    return environment.get(STACK_VARIABLE) == stack_id and service in (None, environment.get(SERVICE_VARIABLE))


def stack_processes(stack_id: str, runtime: Path) -> list[psutil.Process]:
    """All living processes of the stack but the calling one and those that it descends from.

    Args:
        stack_id: id of the stack.
        runtime: its runtime folder.
    """
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    everyone = {process.pid: process for process in psutil.process_iter() if process.pid not in spared}
    found = {pid for pid, process in everyone.items() if is_marked(process, stack_id)}
    found |= _related(everyone, found)
    strangers = [process for pid, process in everyone.items() if pid not in found]
    found |= {process.pid for process in strangers if _is_ray_agent(process, runtime)}
    return [everyone[pid] for pid in sorted(found) if _is_alive(everyone[pid])]


def service_processes(stack_id: str, service: str, leader: int) -> list[psutil.Process]:
    """All living processes of one service, also those that outlived their parents.

    Args:
        stack_id: id of the stack.
        service: name of the service.
        leader: pid of its main process, living or not, which leads a session.
    """
    everyone = {process.pid: process for process in psutil.process_iter() if process.pid != os.getpid()}
    found = {
        pid for pid, process in everyone.items() if _session(pid) == leader or is_marked(process, stack_id, service)
    }
    found |= _related(everyone, found)
    return [everyone[pid] for pid in sorted(found) if _is_alive(everyone[pid])]


def listening_ports(processes: Iterable[psutil.Process]) -> set[int]:
    """TCP ports on which the processes listen."""
    ports: set[int] = set()
    for process in processes:
        try:
            connections = process.net_connections(kind="tcp")
        except _GONE:
            continue
        ports |= {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
    return ports


def end_processes(processes: Iterable[psutil.Process], grace_s: float) -> list[psutil.Process]:
    """Ask the processes to end, kill what is left after `grace_s` seconds.

    Returns:
        Those that are alive even then (in an uninterruptible system call).
    """
    asked = list(processes)
    for process in asked:
        _signal(process, "terminate")
    _, alive = psutil.wait_procs(asked, timeout=grace_s)
    for process in alive:
        _signal(process, "kill")
    return psutil.wait_procs(alive, timeout=_KILL_WAIT_S)[1]


def end_stack(stack_id: str, runtime: Path, grace_s: float = 3.0) -> list[psutil.Process]:
    """End every process of the stack, also those that start meanwhile.

    Returns:
        Those that could not be ended; empty when all is clean.
    """
    while found := stack_processes(stack_id, runtime):
        stuck = end_processes(found, grace_s)
        if stuck:
            return stuck
    return []


def _related(everyone: dict[int, psutil.Process], roots: set[int]) -> set[int]:
    """Pids of descendants of `roots` and of the members of their sessions."""
    sessions = {_session(pid) for pid in roots} - {None}
    parents = {pid: _parent(process) for pid, process in everyone.items()}
    found = set(roots) | {pid for pid in everyone if sessions and _session(pid) in sessions}
    while added := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= added
    return found


def _is_ray_agent(process: psutil.Process, runtime: Path) -> bool:
    try:
        title = process.cmdline()
        if not title or not title[0].startswith("ray::"):
            return False
        return any(Path(file.path).is_relative_to(runtime) for file in process.open_files())
    except (*_GONE, OSError):
        return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except _GONE:
        return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except _GONE:
        return None


def _signal(process: psutil.Process, method: str) -> None:
    try:
        getattr(process, method)()
    except _GONE:
        return
