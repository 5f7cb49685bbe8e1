"""The supervisor of a stack: `python -m semr.stack.supervisor FOLDER`, started by `semr up`, detached from its terminal.

It chooses the ports, starts all servers at once, publishes their state, starts a server that ended by itself again after a
growing pause, and ends them all when it is asked to (SIGTERM). During the first start a service has `_START_ATTEMPTS`
attempts; then the whole stack is given up, so that `semr up` can say what failed.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from semr.errors import SemrError
from semr.stack import launch
from semr.stack.context import StackContext, stack_settings
from semr.stack.contract_file import write_contract
from semr.stack.errors import StackError
from semr.stack.log_files import limit_size
from semr.stack.ports import PortOwner, allocate
from semr.stack.processes import SERVICE_VARIABLE, end_processes, end_stack, listening_ports, service_processes
from semr.stack.services import build_services, port_requests
from semr.stack.services.base import CHECK_TIMEOUT_S, NotReadyError, RestartNeededError, Service
from semr.stack.state import StateFolder, read_identity, read_json, read_options, write_private
from semr.stack.status import ServiceState, ServiceStatus, StackState, StackStatus, write_status

_logger = logging.getLogger("semr.stack.supervisor")

_START_ATTEMPTS = 2
_START_TIMEOUT_S = 120.0
_POLL_S = 0.2
_CHECK_STARTING_S = 0.3
_CHECK_HEALTHY_S = 2.0
_TEND_S = 5.0
_HOUSEKEEPING_S = 2.0
# Two misses in a row can be a busy machine.
_MISSES_TO_UNHEALTHY = 3
_BACK_OFF_FIRST_S = 1.0
_BACK_OFF_LONGEST_S = 60.0
# A service that was healthy for so long starts with a short pause again.
_BACK_OFF_RESET_S = 60.0
# What a check raises when the server does not answer as it should; ValueError: its answer is not JSON.
_MISSES = (NotReadyError, httpx.HTTPError, OSError, ValueError)
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class _Child:
    """A service with its process and its published status."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.status = ServiceStatus(name=service.name, state=ServiceState.STARTING, url=service.url)
        self.process: subprocess.Popen[bytes] | None = None
        self.was_healthy = False
        self.failures = 0

    def back_off(self) -> float:
        """Seconds to wait before the next start."""
        return float(min(_BACK_OFF_FIRST_S * 2 ** max(0, self.failures - 1), _BACK_OFF_LONGEST_S))


class Supervisor:
    """Runs the services of one stack until it is stopped or the start fails."""

    def __init__(self, context: StackContext, services: Iterable[Service]) -> None:
        self._context = context
        self._children = [_Child(service) for service in services]
        self._stopping = asyncio.Event()
        self._status = StackStatus(
            state=StackState.STARTING,
            supervisor_pid=os.getpid(),
            services=[child.status for child in self._children],
        )

    async def run(self) -> bool:
        """Run until SIGTERM or a failed start.

        Returns:
            False when the start failed.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        self._publish()
        # Requests go to loopback only; a proxy of the caller's environment must not see them.
        async with httpx.AsyncClient(timeout=CHECK_TIMEOUT_S, trust_env=False) as client:
            keepers = [asyncio.create_task(self._keep(child, client)) for child in self._children]
            housekeeper = asyncio.create_task(self._keep_house())
            await asyncio.gather(*keepers)
            housekeeper.cancel()
            with suppress(asyncio.CancelledError):
                await housekeeper
        failed = self._status.failed_service is not None
        self._status.state = StackState.FAILED if failed else StackState.STOPPED
        self._publish()
        return not failed

    async def _keep(self, child: _Child, client: httpx.AsyncClient) -> None:
        """Start the service again and again until the stack stops."""
        while not self._stopping.is_set():
            try:
                self._start(child)
                reason = await self._watch(child, client)
            except OSError as error:  # such as a full disk
                reason = f"cannot be started: {error}"
            if self._stopping.is_set() and child.status.state is ServiceState.HEALTHY:
                with suppress(*_MISSES, asyncio.TimeoutError):
                    await asyncio.wait_for(child.service.tend(client), CHECK_TIMEOUT_S)
            await self._end(child)
            if self._stopping.is_set():
                break
            child.failures += 1
            _logger.warning("%s: %s (failure %d)", child.service.name, reason, child.failures)
            if not child.was_healthy and child.failures >= _START_ATTEMPTS:
                self._give_up(child, reason)
                return
            pause = child.back_off()
            self._set(child, ServiceState.BACKING_OFF, f"{reason}; next start in {pause:.0f} s")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            child.status.restarts += 1
        if child.status.state is not ServiceState.FAILED:
            self._set(child, ServiceState.STOPPED, "")

    def _start(self, child: _Child) -> None:
        service = child.service
        service.prepare()
        with self._context.folder.log(service.name).open("ab") as log:
            child.process = subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *service.command()],
                env={
                    **self._context.base_environment(),
                    **service.environment(),
                    SERVICE_VARIABLE: service.name,
                },
                cwd=self._context.folder.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child.status.pid = child.process.pid
        child.status.started = time.time()
        child.status.healthy_since = None
        self._set(child, ServiceState.STARTING, "process started")

    async def _watch(self, child: _Child, client: httpx.AsyncClient) -> str:
        """Check the service until its process ends or it takes too long to start; returns which."""
        ended = asyncio.create_task(self._wait_for_end(child))
        checks = asyncio.create_task(self._check_until(ended, child, client))
        await asyncio.wait({ended, checks}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, checks):
            task.cancel()
        outcomes = await asyncio.gather(ended, checks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, str):
                return outcome
        raise next(
            outcome
            for outcome in outcomes
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError)
        )

    async def _wait_for_end(self, child: _Child) -> str:
        process = child.process
        if process is None:
            raise StackError(f"{child.service.name} is watched before it is started")
        while not self._stopping.is_set():
            code = process.poll()
            if code is not None:
                return _describe_exit(code)
            await asyncio.sleep(_POLL_S)
        return "asked to stop"

    async def _check_until(self, ended: asyncio.Task[str], child: _Child, client: httpx.AsyncClient) -> str:
        """Keep the service's state up to date until its process ends; earlier when it takes too long to start, or must start
        again."""
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        tend_at = 0.0
        misses = 0
        while not ended.done():
            try:
                await child.service.check(client)
                if child.status.state is not ServiceState.HEALTHY:
                    await asyncio.to_thread(self._expect_own_ports, child)
                self._passed(child)
                misses = 0
                if time.monotonic() >= tend_at:
                    tend_at = time.monotonic() + _TEND_S
                    await child.service.tend(client)
            except RestartNeededError as error:
                return str(error)
            except _MISSES as error:
                misses += 1
                self._missed(child, misses, _describe_miss(error))
            starting = child.status.state is ServiceState.STARTING
            if starting and time.monotonic() >= give_up_at:
                return f"not healthy within {_START_TIMEOUT_S:.0f} s ({child.status.detail})"
            await asyncio.sleep(_CHECK_STARTING_S if starting else _CHECK_HEALTHY_S)
        return ended.result()

    def _expect_own_ports(self, child: _Child) -> None:
        process = child.process
        if process is None:
            raise NotReadyError("waiting for its process")
        own = listening_ports(service_processes(self._context.identity.stack_id, child.service.name, process.pid))
        foreign = sorted(child.service.owned_ports - own)
        if foreign:
            raise NotReadyError(f"another program listens on port {foreign[0]}")

    def _passed(self, child: _Child) -> None:
        if child.status.state is not ServiceState.HEALTHY:
            child.was_healthy = True
            child.status.healthy_since = time.time()
            self._set(child, ServiceState.HEALTHY, child.service.note)
        elif child.failures and time.time() - (child.status.healthy_since or 0.0) > _BACK_OFF_RESET_S:
            child.failures = 0

    def _missed(self, child: _Child, misses: int, detail: str) -> None:
        if child.status.state is ServiceState.STARTING:
            self._set(child, ServiceState.STARTING, detail)
        elif misses >= _MISSES_TO_UNHEALTHY:
            child.status.healthy_since = None
            self._set(child, ServiceState.UNHEALTHY, detail)

    def _give_up(self, child: _Child, reason: str) -> None:
        self._set(child, ServiceState.FAILED, reason)
        if self._status.failed_service is None:
            self._status.failed_service = child.service.name
            self._status.error = reason
        self._status.state = StackState.STOPPING
        self._publish()
        self._stopping.set()

    async def _end(self, child: _Child) -> None:
        """End the service's process and all that it started, also when the process itself is gone."""
        process = child.process
        if process is None:
            return
        await asyncio.to_thread(_end_service, self._context.identity.stack_id, child.service, process.pid)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        child.process = None
        child.status.pid = None
        child.status.healthy_since = None
        child.service.clean_up()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            folder = self._context.folder
            try:
                if read_identity(folder) != self._context.identity:
                    _logger.warning("The state folder was removed or taken over: the stack ends.")
                    self._stopping.set()
                    return
                for name in (*(child.service.name for child in self._children), "supervisor"):
                    limit_size(folder.log(name))
            except OSError as error:
                _logger.warning("The state folder cannot be read: %s", error)
            _reap_orphans({child.process.pid for child in self._children if child.process is not None})

    def _set(self, child: _Child, state: ServiceState, detail: str) -> None:
        if (child.status.state, child.status.detail) == (state, detail):
            return
        if child.status.state is not state:
            _logger.info("%s: %s %s", child.service.name, state.value, detail)
        child.status.state, child.status.detail = state, detail
        if self._status.state is StackState.STARTING and all(child.was_healthy for child in self._children):
            self._status.state = StackState.RUNNING
        self._publish()

    def _publish(self) -> None:
        if self._stopping.is_set() and self._status.state is StackState.RUNNING:
            self._status.state = StackState.STOPPING
        try:
            write_status(self._context.folder, self._status)
        except OSError as error:  # a full disk must not end servers that run
            _logger.warning("The status cannot be written: %s", error)


def _end_service(stack_id: str, service: Service, leader: int) -> None:
    # The leader ends what it started in good order; only then are stragglers asked.
    with suppress(psutil.NoSuchProcess):
        end_processes([psutil.Process(leader)], service.grace_s)
    end_processes(service_processes(stack_id, service.name, leader), service.grace_s)


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _describe_miss(error: Exception) -> str:
    if isinstance(error, httpx.ConnectError):
        return "waiting for its port"
    return str(error) or type(error).__name__


def _adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ends (Linux), so that none escapes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_orphans(children: set[int]) -> None:
    """Collect the exit codes of adopted processes; those of `children` are for their owners."""
    for process in psutil.Process().children():
        if process.pid in children:
            continue
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)


def _make_context(folder: StateFolder) -> StackContext:
    identity = read_identity(folder)
    if identity is None:
        raise StackError(f"{folder.root} holds no stack: start it with `semr up`.")
    recorded = {name: port for name, port in (read_json(folder.ports_file) or {}).items() if isinstance(port, int)}
    ports = allocate(port_requests(folder), recorded, PortOwner.this_process())
    write_private(folder.ports_file, json.dumps(ports, indent=2))
    runtime = Path(identity.runtime)
    shutil.rmtree(runtime, ignore_errors=True)
    runtime.mkdir(mode=0o700)
    (runtime / "tmp").mkdir()
    return StackContext(folder, identity, read_options(folder), ports, stack_settings(identity, ports))


def main(argv: list[str]) -> int:
    """Run the stack in the state folder `argv[0]`; exit code 1 when it could not be started."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    folder = StateFolder.at(Path(argv[0]))
    _adopt_orphans()
    try:
        context = _make_context(folder)
    except SemrError as error:
        _logger.error("%s", error)
        return 1
    write_contract(folder, context.settings)
    try:
        succeeded = asyncio.run(Supervisor(context, build_services(context)).run())
    finally:
        folder.env_file.unlink(missing_ok=True)
        end_stack(context.identity.stack_id, context.runtime)
        shutil.rmtree(context.runtime, ignore_errors=True)
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
