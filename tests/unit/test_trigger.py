"""The HTTP application: who may ask, what is refused, and that nothing wrong launches anything."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from semr.errors import DependencyUnavailableError
from semr.evolution.audit import AuditTrail
from semr.evolution.conductor import Conductor
from semr.evolution.dependencies import Dependencies, Dependency
from semr.evolution.intake import Intake
from semr.evolution.launcher import LocalLauncher
from semr.evolution.launches import Ledger
from semr.evolution.metrics import EvolutionMetrics
from semr.evolution.policy import Policy
from semr.evolution.trigger import MOST_BYTES, ServiceState, create_app
from semr.storage import ObjectStore

TOKEN = "the-token"
WEBHOOK = "/api/v1/alerts"


def message(*alerts: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "4",
        "groupKey": '{}:{alertname="Drift"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "semr-evolution",
        "groupLabels": {"alertname": "Drift"},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://127.0.0.1:9093",
        "alerts": list(alerts),
    }


def alert(model: str = "a", status: str = "firing", starts: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {
        "status": status,
        "labels": {"alertname": "Drift", "model": model, "version": "1", "severity": "warning", "semr": "evolution"},
        "annotations": {"summary": "inputs have drifted", "description": "PSI 0.4"},
        "startsAt": starts,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://127.0.0.1:9090/graph",
        "fingerprint": f"{model}-drift",
    }


class Service:
    """The application over a ledger; launches stay queued, since no thread moves them on."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        model = {"alerts": ["Drift"], "launch": {"local": {"module": "m", "workflow": "w"}}}
        policy = Policy.model_validate({"models": {"a": model, "b": model}})
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.problems: dict[str, str] = {}
        self.stopped: list[str] = []
        self.aliases = {"champion": "1"}
        self.woken = threading.Event()
        self.trail = AuditTrail(store)
        launcher = LocalLauncher(self.ledger.path, folder / "logs", {})
        names = ("object-store", "mlflow")
        self.dependencies = Dependencies([Dependency(name, lambda name=name: self._check(name)) for name in names])  # type: ignore[misc]
        self.dependencies.probe()
        self.state = ServiceState(
            intake=Intake(self.ledger, policy),
            policy=policy,
            ledger=self.ledger,
            conductor=Conductor(self.ledger, launcher, launcher, dict),
            dependencies=self.dependencies,
            metrics=EvolutionMetrics(self.ledger, policy, lambda: dict.fromkeys(names, not self.problems)),
            trail=self.trail,
            token=TOKEN,
            wake=self.woken.set,
            stopped_threads=lambda: self.stopped,
            aliases=lambda model: self.aliases,
        )

    def _check(self, name: str) -> None:
        if name in self.problems:
            raise DependencyUnavailableError(name, "http://x", self.problems[name])

    def launched(self) -> int:
        return sum(number for *_, number in self.ledger.counts())


@pytest.fixture
def service(tmp_path: Path, store: ObjectStore) -> Service:
    return Service(tmp_path, store)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service.state), headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


def test_an_alert_launches_and_wakes(client: TestClient, service: Service) -> None:
    answer = client.post(WEBHOOK, json=message(alert(), alert("b"), alert("c"), alert(status="resolved", starts="x")))
    assert answer.status_code == 200
    assert answer.json()["results"] == {"launched": 2, "ignored": 1, "resolved": 1}
    assert len(answer.json()["launched"]) == 2 and service.woken.is_set() and service.launched() == 2
    assert client.post(WEBHOOK, json=message(alert())).json() == {"results": {"repeated": 1}, "launched": []}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "version 4"),
        (b"null", "version 4"),
        (json.dumps({**message(alert()), "version": "3"}).encode(), "version: Input should be '4'"),
        (json.dumps({"version": "4"}).encode(), "alerts: Field required"),
        (json.dumps(message({**alert(), "labels": "x"})).encode(), "alerts.0.labels: "),
        (json.dumps(message({**alert(), "labels": {"model": 1}})).encode(), "alerts.0.labels.model: "),
        (json.dumps(message(alert(), {**alert("b"), "status": "odd"})).encode(), "alerts.1.status: "),
        (json.dumps(message({**alert(), "fingerprint": ""})).encode(), "alerts.0.fingerprint: "),
        (json.dumps(message({**alert(), "labels": {str(n): "x" for n in range(200)}})).encode(), "alerts.0.labels: "),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_a_malformed_webhook_launches_nothing(client: TestClient, service: Service, body: bytes, said: str) -> None:
    answer = client.post(WEBHOOK, content=body)
    assert answer.status_code == 400 and said in answer.json()["error"], answer.text
    assert service.launched() == 0 and not service.woken.is_set()
    assert client.get("/healthz").json()["status"] == "ok"


def test_an_oversized_webhook_is_not_read(client: TestClient, service: Service) -> None:
    large = json.dumps(message(alert())).encode() + b" " * MOST_BYTES

    def pieces() -> Iterator[bytes]:  # sent without a content length
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for content in (large, pieces()):
        answer = client.post(WEBHOOK, content=content)
        assert answer.status_code == 413 and str(MOST_BYTES) in answer.json()["error"]
    assert service.launched() == 0


@pytest.mark.parametrize("header", [None, "", TOKEN, "Bearer", "Bearer wrong", f"bearer{TOKEN}", f"Basic {TOKEN}"])
def test_without_the_token_nothing_is_done_and_nothing_told(service: Service, header: str | None) -> None:
    with TestClient(create_app(service.state), headers={} if header is None else {"Authorization": header}) as client:
        answers = [
            client.post(path, json=message(alert()))
            for path in (WEBHOOK, *(f"/api/v1/models/a/{what}" for what in ("retrain", "pause", "resume", "rollback")))
        ]
        answers += [client.get(f"/api/v1/{path}") for path in ("models", "models/a/history", "launches/x")]
        assert {answer.status_code for answer in answers} == {401}
        assert all(answer.headers["www-authenticate"] == "Bearer" for answer in answers)
        assert all(TOKEN not in answer.text for answer in answers)
        assert client.get("/healthz").status_code == 200 and client.get("/metrics").status_code == 200
        assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404
    assert service.launched() == 0 and service.ledger.paused("a") is None


def test_controls_for_people(client: TestClient, service: Service) -> None:
    assert client.post("/api/v1/models/a/pause", json={"reason": "holidays"}).json()["changed"]
    assert not client.post("/api/v1/models/a/pause").json()["changed"]
    answer = client.post("/api/v1/models/a/retrain")
    assert answer.status_code == 409 and "paused (holidays)" in answer.json()["error"]
    assert client.post("/api/v1/models/a/resume").json() == {"model": "a", "paused": False, "changed": True}
    answer = client.post("/api/v1/models/a/retrain", json={"reason": "new data"})
    assert answer.status_code == 202 and answer.json()["trigger"]["reason"] == "new data"
    assert client.get(f"/api/v1/launches/{answer.json()['id']}").json() == answer.json()
    assert client.post("/api/v1/models/a/rollback", json={"version": "3"}).status_code == 409
    answer = client.post("/api/v1/models/b/rollback", json={"version": "3", "reason": "it smells"})
    assert answer.status_code == 202 and answer.json()["action"] == "rollback" and answer.json()["version"] == "3"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("models/c/retrain", {}, 404),
        ("models/c/pause", {}, 404),
        ("models/a/retrain", {"kind": "alert"}, 400),
        ("models/a/retrain", {"reasons": "x"}, 400),
        ("models/a/retrain", {"reason": "x" * 501}, 400),
        ("models/a/rollback", {"version": "champion; DROP TABLE launches"}, 400),
        ("models/a/rollback", [1], 400),
    ],
)
def test_wrong_orders_are_refused_with_a_sentence(
    client: TestClient, service: Service, path: str, body: object, status: int
) -> None:
    answer = client.post(f"/api/v1/{path}", json=body)
    assert answer.status_code == status and answer.json()["error"]
    assert service.launched() == 0


def test_history_joins_what_is_stored_and_what_waits(client: TestClient, service: Service) -> None:
    stored = service.trail.append("a", "promoted", version="1", time=5.0)
    client.post(WEBHOOK, json=message(alert()))
    waiting = service.ledger.pending_records("a")[0][1]
    service.trail.put(waiting)  # stored, and not yet forgotten by the ledger
    history = client.get("/api/v1/models/a/history").json()
    assert [record["id"] for record in history["records"]] == [stored.id, waiting.id] and history["missing"] == ""
    assert [r["id"] for r in client.get("/api/v1/models/a/history?limit=1").json()["records"]] == [waiting.id]
    service.problems["object-store"] = "connection refused"
    service.dependencies.probe()
    history = client.get("/api/v1/models/a/history").json()
    assert [record["id"] for record in history["records"]] == [waiting.id] and "refused" in history["missing"]
    assert client.get("/api/v1/models/c/history").status_code == 404
    for limit in ("0", "1001", "x"):
        assert client.get(f"/api/v1/models/a/history?limit={limit}").status_code == 400


def test_models_tell_what_is_known(client: TestClient, service: Service) -> None:
    client.post("/api/v1/models/b/pause", json={"reason": "holidays"})
    client.post(WEBHOOK, json=message(alert()))
    a, b = client.get("/api/v1/models").json()["models"]
    assert a["aliases"] == {"champion": "1"} and a["active_launch"]["state"] == "queued" and a["paused"] is None
    assert b["paused"] == "holidays" and b["last_launch"] is None and b["launches_within_a_day"] == 0
    service.problems["mlflow"] = "connection refused"
    service.dependencies.probe()
    a = client.get("/api/v1/models").json()["models"][0]
    assert a["aliases"] is None and "connection refused" in a["problem"]


def test_health_tells_waiting_from_broken(client: TestClient, service: Service) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    service.problems["mlflow"] = "connection refused"
    service.dependencies.probe()
    answer = client.get("/healthz")
    assert answer.status_code == 200 and answer.json()["status"] == "waiting" and "mlflow" in answer.json()["problems"]
    service.stopped.append("launching")
    answer = client.get("/healthz")
    assert answer.status_code == 503 and answer.json()["stopped_threads"] == ["launching"]


def test_metrics_tell_of_alerts_launches_and_waiting(client: TestClient, service: Service) -> None:
    client.post(WEBHOOK, json=message(alert(), alert("no\nsuch")))
    client.post(WEBHOOK, content=b"{")
    client.post("/api/v1/models/b/pause")
    service.problems["mlflow"] = "away"
    text = client.get("/metrics").text
    for line in (
        'semr_evolution_alerts_total{alert="Drift",model="a",result="launched"} 1.0',
        'semr_evolution_alerts_total{alert="",model="",result="ignored"} 1.0',
        'semr_evolution_webhook_requests_total{status="200"} 1.0',
        'semr_evolution_webhook_requests_total{status="400"} 1.0',
        'semr_evolution_active_launches{model="a",state="queued"} 1.0',
        'semr_evolution_launches_total{action="retrain",model="a",state="rolled_back"} 0.0',
        'semr_evolution_paused{model="b"} 1.0',
        'semr_evolution_launch_waiting{model="a"} 0.0',
        "semr_evolution_audit_pending_records 2.0",
        'semr_evolution_dependency_up{dependency="mlflow"} 0.0',
    ):
        assert line in text.splitlines()


def test_a_ledger_that_cannot_be_written_makes_alertmanager_send_again(client: TestClient, service: Service) -> None:
    service.ledger.close()
    answer = client.post(WEBHOOK, json=message(alert()))
    assert answer.status_code == 503 and "cannot be" in answer.json()["error"]
