"""The evolution service as a process: storms, kills at every moment of a launch, and dependencies that are away.

The object store is real, launches are real processes; what is injected are kills and servers that do not answer.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from pydantic import SecretStr
from typer.testing import CliRunner

import semr.evolution.cli as commands
from semr.errors import DependencyUnavailableError, InvalidInputError, SettingsError
from semr.evolution.audit import AuditTrail
from semr.evolution.client import EvolutionClient, RefusedError
from semr.evolution.launch import State
from semr.evolution.launches import Ledger
from semr.settings import Settings, get_settings
from semr.storage import ObjectStore

TOKEN = "token-of-the-test"
WAIT_SECONDS = 60.0
WORKFLOWS = """
import json, os, time
from pathlib import Path

def note(model_name, launch_id):
    with open(os.environ["RUNS"], "a") as file:
        file.write(f"{model_name} {launch_id}\\n")

def retrain(model_name, launch_id, trigger, seconds=0.0):
    note(model_name, launch_id)
    time.sleep(seconds)
    return json.dumps({"verdict": "refused", "reason": "no better", "challenger_version": "2", "champion_version": "1"})
"""
FLYTE_WORKFLOWS = """
from flytekit import task, workflow
from plain import retrain as plain_retrain

@task
def train(model_name: str, launch_id: str, trigger: str, seconds: float) -> str:
    return plain_retrain(model_name, launch_id, trigger, seconds)

@workflow
def retrain(model_name: str, launch_id: str, trigger: str, seconds: float = 0.5) -> str:
    return train(model_name=model_name, launch_id=launch_id, trigger=trigger, seconds=seconds)
"""
# Runs the service, and kills it at a given moment of the first launch.
KILLED_SERVICE = """
import os, signal, sys
from semr.evolution import conductor, launcher
from semr.evolution.cli import app

def die():
    os.kill(os.getpid(), signal.SIGKILL)

moment = sys.argv.pop(1)
tick, start = conductor.Conductor.tick, launcher.LocalLauncher.start

def dying_tick(self):
    if moment == "persisted" and self.ledger.active():
        die()
    tick(self)

def dying_start(self, launch):
    if moment == "before the spawn":
        die()
    start(self, launch)
    if moment == "after the spawn":
        die()

conductor.Conductor.tick, launcher.LocalLauncher.start = dying_tick, dying_start
app()
"""


class Site:
    """A folder with policy, workflows and ledger, and the service that is started in it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "plain.py").write_text(WORKFLOWS)
        (folder / "flyte_workflows.py").write_text(FLYTE_WORKFLOWS)
        (folder / "killed_service.py").write_text(KILLED_SERVICE)

    def policy(self, module: str = "plain", seconds: float = 0.0, **changes: Any) -> None:
        launch = {"local": {"module": module, "workflow": "retrain"}, "inputs": {"seconds": seconds}}
        model = {"alerts": ["Drift"], "launch": launch, **changes}
        content = {"models": {"a": model, "b": model}}
        (self.folder / "policy.yaml").write_text(yaml.safe_dump(content))

    def start(self, moment: str | None = None) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SEMR_")}
        program = (
            ["-c", "from semr.evolution.cli import app; app()"] if moment is None else ["killed_service.py", moment]
        )
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "serve", "--policy", "policy.yaml", "--dir", "state"],
                cwd=self.folder,
                env={
                    **kept,
                    **self.settings.contract(),
                    "PYTHONPATH": str(self.folder),
                    "RUNS": str(self.folder / "runs"),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait(self.answers)

    def answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "service.log").read_text()
        try:
            return self.health()["status"] != "broken"
        except httpx.HTTPError:
            return False

    def health(self) -> dict[str, Any]:
        content: dict[str, Any] = httpx.get(f"{self.settings.evolution_url}/healthz").json()
        return content

    def metric(self, line: str) -> bool:
        return line in httpx.get(f"{self.settings.evolution_url}/metrics").text.splitlines()

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(WAIT_SECONDS)

    def wait(self, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not until():
            assert time.monotonic() < deadline, (self.folder / "service.log").read_text()[-3000:]
            time.sleep(0.05)

    def send(self, *models: str, starts: str = "1", key: str = "", status: str = "firing") -> httpx.Response:
        alerts = [
            {
                "status": status,
                "labels": {"alertname": "Drift", "model": model, "version": "1", "key": key},
                "startsAt": starts,
                "fingerprint": f"{model}{key}",
            }
            for model in models
        ]
        url = f"{self.settings.evolution_url}/api/v1/alerts"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.post(url, json={"version": "4", "alerts": alerts}, headers=headers, timeout=30.0)

    @property
    def runs(self) -> Counter[str]:
        path = self.folder / "runs"
        return Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else Counter()

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "state/ledger.sqlite")

    def ended(self, model: str = "a") -> bool:
        launches = self.ledger.launches(model)
        return bool(launches) and all(launch.finished for launch in launches)

    def recorded(self, model: str = "a") -> list[str]:
        return [record.kind for record in AuditTrail(ObjectStore.from_settings(self.settings)).records(model)]


@pytest.fixture
def site(tmp_path: Path, store: ObjectStore, object_store_settings: Settings, unused_port: int) -> Iterator[Site]:
    settings = object_store_settings.model_copy(
        update={
            "datasets_bucket": store.bucket,
            "evolution_url": f"http://127.0.0.1:{unused_port}",
            "evolution_token": SecretStr(TOKEN),
        }
    )
    site = Site(tmp_path, settings)
    site.policy()
    yield site
    if site.process is not None and site.process.poll() is None:
        site.kill()
    if (tmp_path / "state/ledger.sqlite").exists():
        for launch in site.ledger.active():
            if launch.pid is not None:
                os.kill(launch.pid, signal.SIGKILL)


def test_a_storm_over_two_models_runs_one_workflow_each(site: Site) -> None:
    site.policy(module="flyte_workflows", seconds=1.0)
    site.start()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: site.send("a", "b", key=str(number), starts=str(number)), range(250)))
    assert {answer.status_code for answer in answers} == {200}
    site.wait(lambda: site.ended("a") and site.ended("b"))
    again = [site.send("a", "b", key=str(number), starts=str(number)).json()["results"] for number in range(0, 250, 25)]
    assert all("launched" not in results for results in again)
    assert site.send("a", "b", key="1", starts="1", status="resolved").json()["results"] == {"resolved": 2}
    assert site.runs == {"a": 1, "b": 1}
    assert {launch.state for model in "ab" for launch in site.ledger.launches(model)} == {State.REFUSED}
    site.wait(lambda: site.health()["audit_pending_records"] == 0)
    # What arrived after the end of the quick workflow was skipped, which is told once.
    assert site.recorded()[:2] == ["triggered", "launched"] and site.recorded().count("skipped") <= 1


@pytest.mark.parametrize("moment", ["persisted", "before the spawn", "after the spawn"])
def test_a_service_that_is_killed_while_it_launches_neither_loses_nor_doubles(site: Site, moment: str) -> None:
    site.policy(seconds=0.5)
    site.start(moment)
    # The kill may come before the answer; Alertmanager would send again, as is done below.
    with contextlib.suppress(httpx.TransportError):
        site.send("a")
    assert site.process is not None
    assert site.process.wait(WAIT_SECONDS) == -signal.SIGKILL
    site.start()
    assert site.send("a").json()["results"] == {"repeated": 1}
    site.wait(site.ended)
    site.wait(lambda: site.health()["audit_pending_records"] == 0)
    assert site.runs == {"a": 1} and site.recorded() == ["triggered", "launched"]
    assert site.ledger.launches("a")[0].state is State.REFUSED


def test_a_service_that_is_killed_at_five_random_moments_finds_its_launch_again(site: Site) -> None:
    site.policy(seconds=8.0)
    site.start()
    site.send("a")
    moments = random.Random(2026)
    for _ in range(5):
        time.sleep(moments.uniform(0.0, 0.8))
        site.kill()
        site.start()
        assert set(site.send("a").json()["results"]) == {"repeated"}
    site.wait(lambda: site.runs)
    site.kill()
    site.wait(site.ended)  # with no service at all
    site.start()
    assert site.runs == {"a": 1} and [launch.state for launch in site.ledger.launches("a")] == [State.REFUSED]


def test_wrong_webhooks_do_not_bring_it_down(site: Site) -> None:
    site.start()
    url = f"{site.settings.evolution_url}/api/v1/alerts"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.post(url, json={}).status_code == 401
    assert httpx.post(url, content=b"{", headers=headers).status_code == 400
    assert httpx.post(url, content=b" " * (3 * 1024 * 1024), headers=headers).status_code == 413
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(b"POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n")
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(b"\x16\x03\x01\x00 no http at all\r\n\r\n")
    assert site.health()["status"] == "ok" and not site.ledger.launches("a")


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _ForwardingServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    # Kept-alive connections last longer than the test.
    daemon_threads = True
    block_on_close = False


class _Forward(socketserver.BaseRequestHandler):
    """Passes a connection on to the object store."""

    goal: tuple[str, int]

    def handle(self) -> None:
        with socket.create_connection(self.goal) as onward:
            threading.Thread(target=self._copy, args=(onward, self.request), daemon=True).start()
            self._copy(self.request, onward)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_waits_for_mlflow_and_the_object_store_says_so_and_catches_up(site: Site) -> None:
    mlflow, storage = free_port(), free_port()
    real = urlsplit(site.settings.need("object_store_endpoint"))
    assert real.hostname is not None and real.port is not None
    handler = type("Handler", (_Forward,), {"goal": (real.hostname, real.port)})
    away = {"mlflow_uri": f"http://127.0.0.1:{mlflow}", "object_store_endpoint": f"http://127.0.0.1:{storage}"}
    trail = AuditTrail(ObjectStore.from_settings(site.settings))
    site.settings = site.settings.model_copy(update=away)
    site.start()
    site.send("a")
    site.wait(lambda: site.metric('semr_evolution_dependency_up{dependency="mlflow"} 0.0'))
    site.wait(lambda: site.metric('semr_evolution_launch_waiting{model="a"} 1.0'))
    health = site.health()
    assert health["status"] == "waiting" and set(health["problems"]) == {"mlflow", "object-store"}
    assert health["active_launches"][0]["state"] == "queued" and health["audit_pending_records"] == 1
    assert not site.runs
    with serving(_ForwardingServer(("127.0.0.1", storage), handler)):
        site.wait(lambda: [record.kind for record in trail.records("a")] == ["triggered"])
        site.wait(lambda: set(site.health()["problems"]) == {"mlflow"})
        assert not site.runs
        with serving(http.server.ThreadingHTTPServer(("127.0.0.1", mlflow), _Health)):
            site.wait(site.ended)
            site.wait(lambda: site.health()["audit_pending_records"] == 0)
            assert site.health()["status"] == "ok"
    assert site.runs == {"a": 1}
    assert [record.kind for record in trail.records("a")] == ["triggered", "launched"]


def test_one_service_at_a_time_and_named_errors_at_the_start(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.start()
    monkeypatch.setattr("semr.evolution.service._LOCK_SECONDS", 0.1)
    with site_as_default(site, monkeypatch):
        serve = ["serve", "--dir", str(site.folder / "state"), "--policy", str(site.folder / "policy.yaml")]
        result = CliRunner().invoke(commands.app, serve)
        assert "Another evolution service uses" in str(result.exception)
        result = CliRunner().invoke(commands.app, [*serve, "--launcher", "flyte"])
        assert "has no launch.flyte for model 'a'" in str(result.exception)
        assert CliRunner().invoke(commands.app, [*serve, "--launcher", "magic"]).exit_code == 2


def test_the_command_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.start()
    app = commands.app
    with site_as_default(site, monkeypatch):
        run = CliRunner().invoke
        assert run(app, ["pause", "a", "--reason", "holidays"]).stdout == "a is paused.\n"
        assert "is paused (holidays)" in str(run(app, ["now", "a"]).exception)
        assert run(app, ["resume", "a"]).stdout == "a is resumed.\n"
        result = run(app, ["now", "a", "--wait"])
        assert "refused: no better" in result.stdout and site.runs == {"a": 1}
        with EvolutionClient() as client:
            assert client.models()[0]["last_launch"]["state"] == "refused"
            with pytest.raises(RefusedError, match="is not retrained now: the cooldown"):
                client.retrain("a", kind="cron")
        site.wait(lambda: site.health()["audit_pending_records"] == 0)
        commands.history("a", limit=10)
        commands.history("a", limit=10, as_json=True)
        commands.models()


@contextmanager
def site_as_default(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(site.folder)
    for name in [name for name in os.environ if name.startswith("SEMR_")]:
        monkeypatch.delenv(name)
    for name, value in site.settings.contract().items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    try:
        yield
    finally:
        get_settings.cache_clear()


def test_the_client_names_what_is_wrong(site: Site) -> None:
    with EvolutionClient(site.settings) as client, pytest.raises(DependencyUnavailableError, match="evolution service"):
        client.models()
    site.start()
    stranger = site.settings.model_copy(update={"evolution_token": SecretStr("wrong")})
    with EvolutionClient(stranger) as client, pytest.raises(SettingsError, match="bearer token is missing or wrong"):
        client.models()
    with EvolutionClient(site.settings) as client, pytest.raises(InvalidInputError, match="no model 'c'"):
        client.history("c")
