"""The supervisor with small real servers in place of the large ones."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from semr.settings import Settings
from semr.stack import supervisor as supervisor_module
from semr.stack.context import StackContext
from semr.stack.ports import PortRequest
from semr.stack.processes import end_stack, stack_processes
from semr.stack.services.base import RestartNeededError, Service, expect_ok
from semr.stack.state import Identity, StackOptions, StateFolder, load_or_create_identity
from semr.stack.status import ServiceState, StackState, StackStatus, read_status
from semr.stack.supervisor import Supervisor


class WebService(Service):
    """Python's file server."""

    name = "web"
    grace_s = 1.0

    @classmethod
    def port_requests(cls) -> tuple[PortRequest, ...]:
        return (PortRequest("web"),)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port('web')}"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(self.port("web"))]

    async def check(self, client: httpx.AsyncClient) -> None:
        await expect_ok(client, self.url, "waiting for the web server")


class BrokenService(WebService):
    """Ends at once."""

    name = "broken"

    def command(self) -> list[str]:
        return [sys.executable, "-c", "import sys; sys.exit('no database')"]


class AbsentService(WebService):
    """Its program is not there."""

    name = "absent"

    def command(self) -> list[str]:
        return ["/nowhere/server"]


class SlowService(WebService):
    """Runs, but never answers."""

    name = "slow"

    def command(self) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(60)"]


class AgedService(WebService):
    """Answers, but says that it must start again, twice."""

    starts = 0

    def prepare(self) -> None:
        super().prepare()
        self.starts += 1

    async def check(self, client: httpx.AsyncClient) -> None:
        await super().check(client)
        if self.starts < 3 and (self.context.folder.root / "aged").exists():
            raise RestartNeededError("the web server has aged")


@pytest.fixture
def context(tmp_path: Path) -> Iterator[StackContext]:
    folder = StateFolder.at(tmp_path / ".semr")
    folder.prepare()
    identity = load_or_create_identity(folder)
    Path(identity.runtime).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield StackContext(folder, identity, StackOptions(), {"web": port}, Settings())
    end_stack(identity.stack_id, Path(identity.runtime))
    (Path(identity.runtime)).rmdir()


def _wait(context: StackContext, condition: Callable[[StackStatus], bool], timeout_s: float = 30) -> StackStatus:
    deadline = time.monotonic() + timeout_s
    while True:
        status = read_status(context.folder)
        if status is not None and condition(status):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def _run_with(
    context: StackContext,
    services: list[type[WebService]],
    observe: Callable[[], None] | None = None,
    ends_by_itself: bool = False,
) -> tuple[bool, list[BaseException]]:
    """Run a supervisor in this process; `observe` runs beside it, then the supervisor is asked to stop if it must be."""
    failures: list[BaseException] = []

    def observe_and_stop() -> None:
        try:
            if observe is not None:
                observe()
        except BaseException as error:  # noqa: BLE001 whatever it is, the test reports it
            failures.append(error)
        if failures or not ends_by_itself:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=observe_and_stop)

    async def run() -> bool:
        supervised = Supervisor(context, [service(context) for service in services])
        if observe is not None:
            asyncio.get_running_loop().call_later(0.2, thread.start)
        return await supervised.run()

    succeeded = asyncio.run(run())
    if observe is not None:
        thread.join()
    return succeeded, failures


def _living(context: StackContext) -> list[psutil.Process]:
    return stack_processes(context.identity.stack_id, context.runtime)


def test_healthy_service_is_reported_and_ended(context: StackContext) -> None:
    seen: list[StackStatus] = []

    def observe() -> None:
        seen.append(_wait(context, lambda status: status.healthy))

    succeeded, failures = _run_with(context, [WebService], observe)
    assert (succeeded, failures) == (True, [])
    service = seen[0].services[0]
    assert seen[0].state is StackState.RUNNING
    assert service.pid is not None
    assert service.healthy_since is not None
    assert _living(context) == []
    final = read_status(context.folder)
    assert final is not None
    assert (final.state, final.services[0].state) == (StackState.STOPPED, ServiceState.STOPPED)


def test_crashing_service_is_restarted_after_growing_pauses(context: StackContext) -> None:
    pauses: list[float] = []

    def observe() -> None:
        for number in range(3):
            status = _wait(context, lambda status: status.healthy)
            assert status.services[0].restarts == number
            assert status.services[0].pid is not None
            os.kill(status.services[0].pid, signal.SIGKILL)
            status = _wait(context, lambda status: status.services[0].state is ServiceState.BACKING_OFF)
            assert "SIGKILL" in status.services[0].detail
            pauses.append(float(status.services[0].detail.rsplit("next start in ", 1)[1].split()[0]))

    succeeded, failures = _run_with(context, [WebService], observe)
    assert (succeeded, failures) == (True, [])
    assert pauses == [1.0, 2.0, 4.0]
    assert _living(context) == []


@pytest.mark.parametrize(
    ("service", "log"), [(BrokenService, "no database"), (AbsentService, "/nowhere/server cannot be started")]
)
def test_start_that_fails_ends_everything(context: StackContext, service: type[WebService], log: str) -> None:
    succeeded, _ = _run_with(context, [WebService, service])
    assert not succeeded
    final = read_status(context.folder)
    assert final is not None
    assert (final.state, final.failed_service) == (StackState.FAILED, service.name)
    assert "exit code 1" in (final.error or "")
    assert log in context.folder.log(service.name).read_text()
    assert _living(context) == []


def test_service_that_never_answers_is_given_up(context: StackContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_START_TIMEOUT_S", 1.0)
    succeeded, _ = _run_with(context, [SlowService])
    assert not succeeded
    final = read_status(context.folder)
    assert final is not None
    assert "not healthy within 1 s" in (final.error or "")
    assert _living(context) == []


def test_service_that_hangs_is_shown_as_unhealthy(context: StackContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "CHECK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(supervisor_module, "_CHECK_HEALTHY_S", 0.1)

    def observe() -> None:
        status = _wait(context, lambda status: status.healthy)
        assert status.services[0].pid is not None
        server = psutil.Process(status.services[0].pid)
        server.suspend()
        _wait(context, lambda status: status.services[0].state is ServiceState.UNHEALTHY)
        server.resume()
        _wait(context, lambda status: status.healthy)

    assert _run_with(context, [WebService], observe) == (True, [])


def test_service_that_needs_a_new_start_gets_it(context: StackContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_CHECK_HEALTHY_S", 0.1)
    pids: list[int | None] = []

    def observe() -> None:
        pids.append(_wait(context, lambda status: status.healthy).services[0].pid)
        (context.folder.root / "aged").touch()
        status = _wait(context, lambda status: status.services[0].state is ServiceState.BACKING_OFF)
        assert status.services[0].detail.startswith("the web server has aged; next start in 1 s")
        status = _wait(context, lambda status: status.healthy and status.services[0].restarts == 2)
        pids.append(status.services[0].pid)

    assert _run_with(context, [AgedService], observe) == (True, [])
    assert pids[0] != pids[1]
    assert _living(context) == []


def test_removed_folder_stops_the_supervisor(context: StackContext) -> None:
    def observe() -> None:
        _wait(context, lambda status: status.healthy)
        context.folder.identity_file.unlink()
        deadline = time.monotonic() + 20
        while _living(context):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    assert _run_with(context, [WebService], observe, ends_by_itself=True) == (True, [])


def test_launcher_ends_its_server_with_the_supervisor(context: StackContext) -> None:
    """A supervisor that is killed cannot end anything: the kernel does."""
    if sys.platform != "linux":
        pytest.skip("parent-death signals are Linux's")
    import subprocess

    from semr.stack import launch

    script = (
        "import os, subprocess, sys; process = subprocess.Popen("
        f"[sys.executable, '-I', '-S', {launch.__file__!r}, str(os.getpid()), 'sleep', '60'], start_new_session=True);"
        "print(process.pid, flush=True); input()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + 10
    while server.name() != "sleep" and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.communicate()
    psutil.wait_procs([server], timeout=5)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_status_of_another_version_is_no_status(context: StackContext) -> None:
    context.folder.status_file.write_text(json.dumps({"state": "dancing", "services": []}))
    assert read_status(context.folder) is None
    context.folder.status_file.write_text(json.dumps({"state": "running", "services": [], "new": secrets.token_hex()}))
    assert read_status(context.folder) is None


def test_identity_marks_the_context(context: StackContext) -> None:
    assert isinstance(context.identity, Identity)
    assert context.base_environment()["TMPDIR"].startswith(context.identity.runtime)
