"""The whole loop on real servers, with nobody touching anything: evolve, do not evolve, refuse, take back.

The tests depend on each other's order: each goes on with the champion that the one before has left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo_tools import ROOT, start_demo
from stack_tools import own_contract, require_programs

from semr.deployment.ray_serve import RayServeTarget
from semr.evolution.client import EvolutionClient
from semr.monitoring.prometheus import Prometheus
from semr.monitoring.queries import firing_alerts
from semr.registry import CHALLENGER, CHAMPION, Registry
from semr.settings import ENV_FILE_NAME, ENV_FILE_VARIABLE, get_settings
from semr.stack import control
from semr.traffic import Tally
from workflow_examples.mnist.distortions import Distortion
from workflow_examples.mnist.traffic import Pool, Traffic
from workflow_examples.mnist.wf_evolution import mnist_watch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MODEL = "mnist"
# For a launch to end. Two minutes on an idle machine.
WAIT_SECONDS = 900.0
# 40 times as fast, an hour of the rules' time takes 90 s.
HOUR = ("--time-compression", "40", "--steady-seconds", "90")
# What `mnist_watch` retrains with where no evolution service has a policy.
SMALL_RETRAINING = {
    "window_seconds": 40.0,
    "least_rows": 150,
    "epochs": 10,
    "learning_rate": 0.003,
    "workers": 1,
    "verification_seconds": 10.0,
}
FIFTY_A_SECOND = ("--rate", "50", "--pictures", "4", "--label-share", "0.3")


@dataclass
class Evolved:
    """A stack on which the demo has run, and what it printed."""

    folder: Path
    output: str


@pytest.fixture(scope="module")
def evolved() -> Iterator[Evolved]:
    require_programs()
    base = Path(tempfile.mkdtemp(prefix="semr-test-"))
    folder = base / ".semr"
    try:
        demo = start_demo(folder, "--keep", *HOUR, *FIFTY_A_SECOND)
        output, _ = demo.communicate(timeout=1500)
        assert demo.returncode == 0, output
        with own_contract() as point_at:
            point_at(folder)
            yield Evolved(folder, output)
    finally:
        control.down(folder)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def traffic(evolved: Evolved) -> Iterator[Traffic]:
    """Ten requests a second with five pictures each, a label for every one."""
    with Traffic(RayServeTarget().url(MODEL), MODEL, 10.0, Pool.of_split("train"), rows=5) as traffic:
        yield traffic


def number(output: str, words: str) -> float:
    found = re.search(rf"{words}\s+([0-9.]+)", output)
    assert found, output
    return float(found[1])


def wait_for_launch(until: Callable[[dict[str, object]], bool], seconds: float = WAIT_SECONDS) -> dict[str, object]:
    """The newest launch of the model when it meets a condition."""
    deadline = time.monotonic() + seconds
    with EvolutionClient() as client:
        while True:
            state = client.models()[0]
            launch = state["active_launch"] or state["last_launch"]
            if launch and until(launch):
                return launch
            assert time.monotonic() < deadline, (launch, client.history(MODEL)["records"][-3:])
            time.sleep(0.5)


def decisions_since(moment: float) -> list[str]:
    return [record["kind"] for record in records_since(moment)]


def records_since(moment: float) -> list[dict[str, Any]]:
    with EvolutionClient() as client:
        return [record for record in client.history(MODEL)["records"] if record["time"] >= moment]


def steps_of(version: str) -> list[str]:
    """What was done with a version; an alert that still fires is sent again meanwhile, and skipped."""
    records = [record for record in records_since(0) if record["version"] == version]
    return [record["kind"] for record in records if record["kind"] != "skipped"]


def look_around() -> dict[str, str]:
    """What `mnist_watch` does, as its cron launch plan would run it: its verdict and reason."""
    found: dict[str, str] = json.loads(mnist_watch(**SMALL_RETRAINING))
    return found


@contextmanager
def no_webhook() -> Iterator[None]:
    """Alertmanager keeps the model's alerts to itself meanwhile, as on a site that has no webhook."""
    now = datetime.now(timezone.utc)
    silence = {
        "matchers": [{"name": "model", "value": MODEL, "isRegex": False, "isEqual": True}],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(hours=1)).isoformat(),
        "createdBy": "tests",
        "comment": "the watch is to see them",
    }
    with httpx.Client(base_url=get_settings().need("alertmanager_url")) as alertmanager:
        answer = alertmanager.post("/api/v2/silences", json=silence).raise_for_status()
        try:
            yield
        finally:
            alertmanager.delete(f"/api/v2/silence/{answer.json()['silenceID']}").raise_for_status()


@contextmanager
def no_evolution_service(folder: Path) -> Iterator[None]:
    """The contract of this process names none meanwhile; the service is there, and paused."""
    lines = (folder / ENV_FILE_NAME).read_text().splitlines(keepends=True)
    with tempfile.NamedTemporaryFile("w", suffix=".env") as without, pytest.MonkeyPatch.context() as patch:
        without.writelines(line for line in lines if "SEMR_EVOLUTION_" not in line)
        without.flush()
        patch.setenv(ENV_FILE_VARIABLE, without.name)
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


def served(tally: Tally) -> set[str]:
    assert tally.failed == 0
    return set(tally.versions)


def test_it_evolves_without_a_human_step_and_without_a_lost_request(evolved: Evolved) -> None:
    output = evolved.output
    assert number(output, "accuracy before") >= 0.97
    assert number(output, "accuracy after the drift") < 0.85
    assert number(output, "accuracy in the end") >= 0.95
    sent = re.search(r"requests\s+(\d+) sent, 0 failed", output)
    assert sent and int(sent[1]) > 50 * 100, output
    assert Registry().get(MODEL, CHAMPION).version == "2"
    assert Registry().get(MODEL, "previous").version == "1"
    assert steps_of("2")[:5] == ["trained", "gate", "deployed", "verified", "promoted"]
    assert (evolved.folder / "report-mnist.html").read_text().count("data:image/png;base64") == 3


def test_an_hour_without_drift_launches_nothing(evolved: Evolved) -> None:
    """The demo's steady traffic: the first thing that was ever decided came after the pictures had changed."""
    assert evolved.output.index("the pictures change") < evolved.output.index("triggered")
    with EvolutionClient() as client:
        first = client.history(MODEL)["records"][0]
    assert first["kind"] == "triggered"
    assert number(evolved.output, "from the drift's first request\\s+alert") > 0


def test_the_watch_stays_while_no_alert_fires(evolved: Evolved) -> None:
    deadline = time.monotonic() + 120
    while Prometheus().query(firing_alerts(MODEL)):  # the demo's own, until its window has passed
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert look_around() == {"verdict": "unchanged", "reason": "no alert fires for mnist"}


@pytest.mark.parametrize("name", ["overview", "serving", "evolution"])
def test_the_dashboards_show_the_demo(evolved: Evolved, name: str) -> None:
    """Asked of the stack's own Prometheus; what only a cluster exports stays empty here."""
    content = json.loads((ROOT / "helm_charts" / "SEMR" / "dashboards" / f"{name}.json").read_text())
    now = time.time()
    empty = []
    with httpx.Client(base_url=get_settings().need("prometheus_url")) as prometheus:
        for panel in content["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "1m").replace("$model", MODEL)
                window = {"query": query, "start": now - 900, "end": now, "step": 5}
                answer = prometheus.get("/api/v1/query_range", params=window).raise_for_status()
                if not answer.json()["data"]["result"]:
                    empty.append(panel["title"])
    assert empty == (["Object store", "Object store"] if name == "overview" else []), empty


def test_poisoned_labels_are_refused(traffic: Traffic) -> None:
    """Every label is wrong, so accuracy seems to fall; a challenger that learns from them has forgotten what was right."""
    started = time.time()
    champion = Registry().get(MODEL, CHAMPION).version
    traffic.mislabel = 1.0
    launch = wait_for_launch(lambda launch: launch["state"] == "refused")
    with EvolutionClient() as client:
        client.pause(MODEL)  # the wrong labels are in the alerts' window for a while
    registry = Registry()
    challenger = registry.get(MODEL, CHALLENGER)
    assert int(challenger.version) > int(champion)
    assert registry.get(MODEL, CHAMPION).version == champion
    reason = registry.tags(challenger)["semr.gate.reason"]
    assert "not as good on old data" in reason
    assert reason in str(launch["outcome"])
    assert served(traffic.tally()) == {champion}
    assert {"triggered", "launched", "trained", "gate", "refused"} <= set(decisions_since(started))


def test_a_version_that_does_worse_live_is_taken_back(traffic: Traffic) -> None:
    """It passes the gate on turned pictures; the moment it answers, the pictures are inverted instead."""
    started = time.time()
    champion = Registry().get(MODEL, CHAMPION).version
    traffic.distortion = Distortion("rotate", -35.0)
    time.sleep(20)
    deadline = time.monotonic() + WAIT_SECONDS
    with EvolutionClient() as client, no_webhook():
        assert "paused" in look_around()["reason"]
        assert client.resume(MODEL)
        while (found := look_around())["verdict"] != "launched":
            assert found["verdict"] == "unchanged", found
            assert time.monotonic() < deadline, found
            time.sleep(1)  # the cooldown of the refused one
    while traffic.newest_version() in (None, champion):
        assert time.monotonic() < deadline, decisions_since(started)
        time.sleep(0.05)
    traffic.distortion = Distortion("invert", 1.0)
    launch = wait_for_launch(lambda launch: launch["state"] in ("rolled_back", "succeeded"))
    assert launch["state"] == "rolled_back", launch
    assert "live accuracy" in str(launch["outcome"])
    assert Registry().get(MODEL, CHAMPION).version == champion
    assert RayServeTarget().current(MODEL) == champion
    time.sleep(2)
    assert traffic.newest_version() == champion
    assert traffic.tally().failed == 0
    decided = decisions_since(started)
    triggered = [record for record in records_since(started) if record["kind"] == "triggered"]
    assert [record["details"]["trigger"]["kind"] for record in triggered] == ["cron"]
    assert [kind for kind in decided if kind in ("deployed", "verified", "rolled_back")] == [
        "deployed",
        "verified",
        "rolled_back",
    ]
    while not Prometheus().query('ALERTS{alertname="ModelRolledBack", alertstate="firing"}'):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_the_watch_retrains_where_there_is_no_evolution_service(evolved: Evolved, traffic: Traffic) -> None:
    """The pictures are still inverted. The service is there, but paused, and the contract names none."""
    champion = Registry().get(MODEL, CHAMPION)
    with EvolutionClient() as client:
        client.pause(MODEL)
    traffic.distortion = Distortion("invert", 1.0)
    deadline = time.monotonic() + 120
    while not Prometheus().query(firing_alerts(MODEL)):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    time.sleep(20)  # of inverted pictures, to learn from
    with no_evolution_service(evolved.folder):
        found = look_around()
    assert found["verdict"] == "promoted", found
    assert traffic.tally().failed == 0
    registry = Registry()
    challenger = registry.get(MODEL, CHAMPION)
    assert challenger.version == found["challenger_version"] != champion.version
    assert registry.tags(challenger)["semr.trigger"] == "cron"
    assert steps_of(challenger.version) == ["trained", "gate", "deployed", "verified", "promoted"]


def test_semr_rollback_brings_the_version_before_back(evolved: Evolved) -> None:
    command = [sys.executable, "-m", "semr.cli", "rollback", MODEL, "1"]
    done = subprocess.run(command, cwd=evolved.folder.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert Registry().get(MODEL, CHAMPION).version == "1"
    assert RayServeTarget().current(MODEL) == "1"


def test_an_interrupted_demo_leaves_the_stack_that_it_did_not_start(evolved: Evolved) -> None:
    log = evolved.folder / "logs" / "demo.log"
    log.unlink()
    again = start_demo(evolved.folder, *HOUR)
    deadline = time.monotonic() + 120
    while not log.is_file():  # the first line of a job
        assert time.monotonic() < deadline and again.poll() is None
        time.sleep(0.1)
    os.killpg(again.pid, signal.SIGINT)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 130 and "Traceback" not in output, output
    assert control.status(evolved.folder).healthy
