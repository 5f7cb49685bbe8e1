"""Crashes, power cuts and restarts: the stack comes back with its data, and `down` leaves nothing.

The tests of this module share one stack and run in their order: each leaves it healthy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import httpx
import psutil
import pytest
from stack_tools import Semr, require_programs

from semr.settings import Settings
from semr.stack import control
from semr.stack.processes import stack_processes
from semr.stack.state import Identity, StateFolder, read_identity
from semr.stack.status import ServiceState, ServiceStatus, StackState

Leftovers = Callable[[Path], list[str]]

pytestmark = pytest.mark.slow

APPLICATION = """
from ray import serve

@serve.deployment
class Echo:
    def __init__(self, word):
        self.word = word

    async def __call__(self, request):
        return self.word

def build(arguments):
    return Echo.bind(arguments["word"])
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    require_programs()
    base = Path(tempfile.mkdtemp(prefix="semr-test-"))
    try:
        control.up(base / ".semr")
        yield base / ".semr"
    finally:
        control.down(base / ".semr")
        shutil.rmtree(base, ignore_errors=True)


def _identity(folder: Path) -> Identity:
    identity = read_identity(StateFolder.at(folder))
    assert identity is not None
    return identity


def _processes(folder: Path) -> list[psutil.Process]:
    identity = _identity(folder)
    return stack_processes(identity.stack_id, Path(identity.runtime))


def _cut_power(folder: Path) -> None:
    processes = _processes(folder)
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # the death of one ends others
            process.kill()
    assert psutil.wait_procs(processes, timeout=20)[1] == []


def _service(folder: Path, name: str) -> ServiceStatus:
    return next(service for service in control.status(folder).services if service.name == name)


def _wait_for_restart(folder: Path, name: str, restarts: int, timeout_s: float = 120) -> ServiceStatus:
    deadline = time.monotonic() + timeout_s
    while True:
        service = _service(folder, name)
        if service.restarts > restarts and service.state is ServiceState.HEALTHY:
            return service
        assert time.monotonic() < deadline, service
        time.sleep(0.3)


def _s3(settings: Settings) -> object:
    return boto3.client(
        "s3",
        endpoint_url=settings.need("object_store_endpoint"),
        region_name=settings.object_store_region,
        aws_access_key_id=settings.need("object_store_access_key"),
        aws_secret_access_key=settings.need("object_store_secret_key"),
    )


def _put_data(folder: Path) -> None:
    settings = control.settings(folder)
    _s3(settings).put_object(Bucket=settings.datasets_bucket, Key="kept", Body=b"data" * 1000)  # type: ignore[attr-defined]
    answer = httpx.post(
        f"{settings.need('mlflow_uri')}/api/2.0/mlflow/registered-models/create", json={"name": "kept"}, timeout=30
    )
    assert answer.status_code in (200, 400)  # 400: a test before this one made it


def _assert_data(folder: Path) -> None:
    settings = control.settings(folder)
    stored = _s3(settings).get_object(Bucket=settings.datasets_bucket, Key="kept")  # type: ignore[attr-defined]
    assert stored["Body"].read() == b"data" * 1000
    answer = httpx.get(
        f"{settings.need('mlflow_uri')}/api/2.0/mlflow/registered-models/get", params={"name": "kept"}, timeout=30
    )
    assert answer.status_code == 200


def _deploy(folder: Path, word: str) -> None:
    modules = folder.parent / "modules"
    modules.mkdir(exist_ok=True)
    (modules / "stack_echo.py").write_text(APPLICATION)
    settings = control.settings(folder)
    config = {
        "name": "echo",
        "route_prefix": "/echo",
        "import_path": "stack_echo:build",
        "args": {"word": word},
        "runtime_env": {"env_vars": {"PYTHONPATH": str(modules)}},
        "deployments": [{"name": "Echo", "ray_actor_options": {"num_cpus": 0.1}}],
    }
    answer = httpx.put(
        f"{settings.need('ray_dashboard_url')}/api/serve/applications/",
        json={"applications": [config]},
        headers={"Authorization": f"Bearer {settings.need('ray_auth_token')}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


def _wait_for_word(folder: Path, word: str, timeout_s: float = 60) -> None:
    url = f"{control.settings(folder).need('serve_url')}/echo"
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer = httpx.get(url)
        except httpx.HTTPError as error:
            seen = repr(error)
        else:
            if (answer.status_code, answer.text) == (200, word):
                return
            seen = f"{answer.status_code} {answer.text}"
        assert time.monotonic() < deadline, seen
        time.sleep(0.3)


@pytest.mark.parametrize("name", ["object-store", "mlflow", "prometheus", "alertmanager", "evolution"])
def test_killed_service_is_restarted(shared: Path, name: str) -> None:
    _put_data(shared)
    before = _service(shared, name)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    after = _wait_for_restart(shared, name, before.restarts)
    assert after.pid != before.pid
    assert after.url == before.url
    _assert_data(shared)


def test_killed_worker_of_mlflow_is_restarted(shared: Path) -> None:
    before = _service(shared, "mlflow")
    workers = psutil.Process(before.pid).children(recursive=True)
    assert workers
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    _wait_for_restart(shared, "mlflow", before.restarts)
    _assert_data(shared)


@pytest.mark.parametrize("victim", ["ray start", "gcs_server", "raylet"])
def test_killed_ray_comes_back_with_its_applications(shared: Path, victim: str) -> None:
    _deploy(shared, victim)
    _wait_for_word(shared, victim)
    deadline = time.monotonic() + 20
    while victim not in ((shared / "serve.json").read_text() if (shared / "serve.json").exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    before = _service(shared, "ray")
    leader = psutil.Process(before.pid)
    family = [leader, *leader.children(recursive=True)]
    target = leader if victim == "ray start" else next(p for p in family if p.name() == victim)
    target.kill()
    _wait_for_restart(shared, "ray", before.restarts)
    _wait_for_word(shared, victim, timeout_s=10)
    time.sleep(1)
    alive = {process.pid for process in _processes(shared)}
    assert not alive & {process.pid for process in family}


def test_backing_off_grows_and_is_shown(shared: Path) -> None:
    """Alertmanager is killed as soon as it runs."""
    pauses: list[float] = []
    seen = ""
    deadline = time.monotonic() + 40
    while len(pauses) < 3 and time.monotonic() < deadline:
        service = _service(shared, "alertmanager")
        if service.state is ServiceState.BACKING_OFF and service.detail != seen + str(service.restarts):
            seen = service.detail + str(service.restarts)
            pauses.append(float(service.detail.rsplit("next start in ", 1)[1].split()[0]))
            while _service(shared, "alertmanager").state is ServiceState.BACKING_OFF:
                time.sleep(0.05)
        elif service.pid is not None:
            psutil.Process(service.pid).kill()
            time.sleep(0.3)
    assert len(pauses) == 3
    assert pauses[2] > pauses[1] > pauses[0]
    _wait_for_restart(shared, "alertmanager", _service(shared, "alertmanager").restarts - 1)


def test_down_and_up_keep_everything(shared: Path, semr: Semr, leftovers: Leftovers) -> None:
    _put_data(shared)
    _deploy(shared, "down and up")
    _wait_for_word(shared, "down and up")
    ports = (shared / "ports.json").read_text()
    ended = semr("down", "--dir", str(shared))
    assert ended.returncode == 0, ended.stderr
    assert leftovers(shared) == []
    assert not (shared / "env").exists()
    assert semr("status", "--dir", str(shared)).returncode == 1
    assert semr("env", "--dir", str(shared)).returncode == 1
    assert semr("down", "--dir", str(shared)).returncode == 0
    assert semr("up", "--dir", str(shared)).returncode == 0
    assert (shared / "ports.json").read_text() == ports
    _assert_data(shared)
    _wait_for_word(shared, "down and up", timeout_s=10)


def test_killed_supervisor_takes_all_with_it(shared: Path, semr: Semr, leftovers: Leftovers) -> None:
    _put_data(shared)
    supervisor = psutil.Process(json.loads((shared / "status.json").read_text())["supervisor_pid"])
    supervisor.kill()
    supervisor.wait(10)
    assert control.status(shared).state is StackState.STOPPED
    assert semr("down", "--dir", str(shared)).returncode == 0
    assert leftovers(shared) == []
    assert semr("up", "--dir", str(shared)).returncode == 0
    _assert_data(shared)


def test_power_cut(shared: Path, semr: Semr) -> None:
    """Everything dies at once; the state folder still says that the stack is up, and a stranger has the supervisor's pid."""
    _put_data(shared)
    _cut_power(shared)
    assert (shared / "env").exists()
    recorded = json.loads((shared / "status.json").read_text())
    recorded["supervisor_pid"] = os.getpid()
    (shared / "status.json").write_text(json.dumps(recorded))
    assert control.status(shared).state is StackState.STOPPED
    started = semr("up", "--dir", str(shared))
    assert started.returncode == 0, started.stdout + started.stderr
    _assert_data(shared)
    _wait_for_word(shared, "down and up", timeout_s=10)


def test_half_written_state_is_recovered(shared: Path, semr: Semr) -> None:
    _cut_power(shared)
    for name in ("status.json", "ports.json", "options.json"):
        (shared / name).write_text('{"half": ')
    (shared / "lock").write_text("stale")
    started = semr("up", "--dir", str(shared))
    assert started.returncode == 0, started.stdout + started.stderr
    _assert_data(shared)


def test_data_survive_other_ports(shared: Path, semr: Semr) -> None:
    assert semr("down", "--dir", str(shared)).returncode == 0
    ports = json.loads((shared / "ports.json").read_text())
    moved = {name: port + 500 for name, port in ports.items() if 21000 <= port < 21400}
    (shared / "ports.json").write_text(json.dumps({**ports, **moved}))
    assert semr("up", "--dir", str(shared)).returncode == 0
    assert json.loads((shared / "ports.json").read_text())["object-store-master"] == moved["object-store-master"]
    _assert_data(shared)


def test_purge_removes_everything(shared: Path, semr: Semr, leftovers: Leftovers) -> None:
    kept = shared.parent / "kept"
    kept.mkdir()
    for name in ("identity.json", "ports.json"):
        shutil.copy(shared / name, kept / name)
    purged = semr("down", "--purge", "--yes", "--dir", str(shared))
    assert purged.returncode == 0, purged.stderr
    assert not shared.exists()
    assert leftovers(kept) == []
