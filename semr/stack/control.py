"""Bring a stack up, take it down, ask how it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from semr.settings import Settings
from semr.stack.contract_file import read_contract
from semr.stack.disk import disk_shortage
from semr.stack.errors import ServiceFailedError, StackError, StackFolderError
from semr.stack.log_files import tail
from semr.stack.processes import SERVICE_VARIABLE, STACK_VARIABLE, end_stack, is_marked, stack_processes
from semr.stack.state import (
    Identity,
    StackOptions,
    StateFolder,
    load_or_create_identity,
    read_identity,
    read_options,
    write_options,
)
from semr.stack.status import ServiceState, StackState, StackStatus, read_status

Progress = Callable[[StackStatus], None]

# A service has two attempts of 120 s each; see `supervisor`.
_UP_TIMEOUT_S = 260.0
_DOWN_TIMEOUT_S = 30.0
# `down` of another process takes seconds; an `up` may take minutes, and waiting for it is what the caller wants.
_LOCK_TIMEOUT_S = 300.0
_POLL_S = 0.1
# The service that takes no more data when the disk of the state folder is full.
_ON_DISK = "object-store"
_SUPERVISOR = "semr.stack.supervisor"
_LOG_TAIL_LINES = 30


def up(folder: Path, options: StackOptions | None = None, progress: Progress | None = None) -> Settings:
    """Bring the stack in `folder` up and wait until every service is healthy; a stack that is up is left as it is.

    Args:
        folder: the state folder; created when missing.
        options: what to change against the last `up`.
        progress: called with every new status.

    Returns:
        The contract of the stack.

    Raises:
        StackFolderError: the folder cannot be used.
        ProgramMissingError: a server program is not installed.
        ServiceFailedError: a service did not become healthy; nothing is left running.
        StackError: the stack is up with other options, or it could not be started for another reason.
    """
    from semr.stack.services import check_installed  # noqa: PLC0415 `status` and `down` need none of the servers' modules

    state = StateFolder.at(folder)
    state.prepare()
    with _locked(state):
        identity = load_or_create_identity(state)
        recorded = read_options(state)
        wanted = (options or StackOptions()).over(recorded)
        supervisor = _find_supervisor(state, identity)
        if supervisor is not None:
            if wanted != recorded:
                raise StackError("The stack is up with other options: run `semr down` first, then `semr up` again.")
            _follow(state, supervisor, progress)
            return read_contract(state)
        check_installed(state)
        _end_leftovers(state, identity)
        write_options(state, wanted)
        try:
            supervisor = _spawn_supervisor(state, identity)
            _follow(state, supervisor, progress)
        except BaseException:
            with _uninterrupted():
                _stop(state, identity)
            raise
        return read_contract(state)


def down(folder: Path, purge: bool = False) -> bool:
    """End every process of the stack in `folder`; data and credentials stay.

    Args:
        folder: the state folder.
        purge: remove the folder with all data afterwards.

    Returns:
        Whether there was anything to end.

    Raises:
        StackFolderError: `purge` of a folder that is not a state folder.
        StackError: a process could not be ended.
    """
    state = StateFolder.at(folder)
    identity = read_identity(state)
    if identity is None:
        if purge:
            raise StackFolderError(f"{state.root} holds no stack, so nothing is removed: name its folder with --dir.")
        return False
    supervisor = _find_supervisor(state, identity)
    if supervisor is not None:
        # Before the lock: an `up` that still waits for the stack then gives up and releases it.
        supervisor.terminate()
    with _locked(state), _uninterrupted():
        ended = _stop(state, identity) or supervisor is not None
    if purge:
        shutil.rmtree(state.root)
    return ended


def status(folder: Path) -> StackStatus:
    """How the stack in `folder` is; state `stopped` when there is none or its supervisor is gone."""
    state = StateFolder.at(folder)
    identity = read_identity(state)
    recorded = read_status(state)
    if identity is None or recorded is None:
        return StackStatus(state=StackState.STOPPED)
    if _find_supervisor(state, identity) is not None:
        return _with_shortage(recorded, state)
    services = [
        replace(service, state=ServiceState.STOPPED, pid=None, healthy_since=None, detail="")
        for service in recorded.services
    ]
    return StackStatus(state=StackState.STOPPED, services=services)


def settings(folder: Path) -> Settings:
    """The contract of the stack in `folder`.

    Raises:
        StackError: it is not up.
    """
    state = StateFolder.at(folder)
    identity = read_identity(state)
    if identity is not None and _find_supervisor(state, identity) is not None:
        with suppress(FileNotFoundError):
            return read_contract(state)
    raise StackError(f"The stack in {state.root} is not up: start it with `semr up`.")


def _with_shortage(recorded: StackStatus, state: StateFolder) -> StackStatus:
    """The status with what the supervisor cannot publish: on a full disk its file stays as it was."""
    shortage = disk_shortage(state.root)
    if shortage is not None:
        for service in recorded.services:
            if service.name == _ON_DISK and service.state is ServiceState.HEALTHY:
                service.state, service.detail = ServiceState.UNHEALTHY, str(shortage)
    return recorded


def _spawn_supervisor(state: StateFolder, identity: Identity) -> psutil.Process:
    state.status_file.unlink(missing_ok=True)
    with state.log("supervisor").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", _SUPERVISOR, str(state.root)],
            env={
                **{name: value for name, value in os.environ.items() if name != SERVICE_VARIABLE},
                STACK_VARIABLE: identity.stack_id,
            },
            cwd=state.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Nobody waits for it after `up`: let a thread collect its exit code, so that it does not stay as a zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    return psutil.Process(process.pid)


def _find_supervisor(state: StateFolder, identity: Identity) -> psutil.Process | None:
    """The living supervisor that the status names.

    A reused pid is recognised by its command and the stack's id in its environment. These, unlike a start time, do not change
    when somebody sets the clock.
    """
    recorded = read_status(state)
    if recorded is None or recorded.supervisor_pid is None:
        return None
    try:
        process = psutil.Process(recorded.supervisor_pid)
        supervises = _SUPERVISOR in process.cmdline() and is_marked(process, identity.stack_id)
        return process if supervises and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def _follow(state: StateFolder, supervisor: psutil.Process, progress: Progress | None) -> None:
    """Wait until every service is healthy.

    Raises:
        ServiceFailedError: one was given up.
        StackError: the supervisor ended for another reason, or it takes too long.
    """
    deadline = time.monotonic() + _UP_TIMEOUT_S
    while True:
        # Asked before the status is read: what a supervisor published before it ended is then seen.
        running = _is_running(supervisor)
        current = read_status(state)
        if current is not None:
            if progress is not None:
                progress(current)
            if current.state is StackState.RUNNING and _is_up(current, state):
                return
            if current.failed_service is not None:
                log = tail(state.log(current.failed_service), _LOG_TAIL_LINES)
                raise ServiceFailedError(current.failed_service, current.error or "unknown", "\n".join(log))
        if not running:
            if current is not None and current.state in (StackState.STOPPING, StackState.STOPPED):
                raise StackError("The stack was taken down while it was starting: run `semr up` again.")
            log = tail(state.log("supervisor"), _LOG_TAIL_LINES)
            raise ServiceFailedError("supervisor", "it ended unexpectedly", "\n".join(log))
        if time.monotonic() > deadline:
            raise StackError(
                f"The stack is not healthy after {_UP_TIMEOUT_S:.0f} s: see `semr status` and `semr logs SERVICE`."
            )
        time.sleep(_POLL_S)


def _is_up(current: StackStatus, state: StateFolder) -> bool:
    """Whether every service is healthy, or would be with more room on the disk."""
    ailing = {service.name for service in current.services if service.state is not ServiceState.HEALTHY}
    return not ailing or (ailing == {_ON_DISK} and disk_shortage(state.root) is not None)


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stop(state: StateFolder, identity: Identity) -> bool:
    """End the supervisor and all that it started; True when there was something to end."""
    supervisor = _find_supervisor(state, identity)
    if supervisor is not None:
        try:
            supervisor.terminate()
            supervisor.wait(timeout=_DOWN_TIMEOUT_S)
        except psutil.NoSuchProcess:
            pass
        except psutil.TimeoutExpired:
            supervisor.kill()
    return _end_leftovers(state, identity) or supervisor is not None


def _end_leftovers(state: StateFolder, identity: Identity) -> bool:
    """End processes of the stack that no supervisor owns, and forget the state that they left."""
    runtime = Path(identity.runtime)
    there_were = bool(stack_processes(identity.stack_id, runtime))
    stuck = end_stack(identity.stack_id, runtime)
    if stuck:
        names = ", ".join(f"{process.pid}" for process in stuck)
        raise StackError(f"Processes {names} of the stack cannot be ended: end them, then run `semr down` again.")
    state.env_file.unlink(missing_ok=True)
    state.status_file.unlink(missing_ok=True)
    shutil.rmtree(runtime, ignore_errors=True)
    return there_were


@contextmanager
def _locked(state: StateFolder) -> Iterator[None]:
    lock = FileLock(state.lock_file, timeout=_LOCK_TIMEOUT_S)
    try:
        with lock:
            yield
    except Timeout as error:
        raise StackError(
            f"Another `semr up` or `semr down` has been at work in {state.root} for {_LOCK_TIMEOUT_S:.0f} s: "
            "end it, then try again."
        ) from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C while processes are being ended: that is bounded in time, and half of it would leave some running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
