"""The evolution service as the chart runs it, with its contract, its policy and what Alertmanager is told about it.

Flyte, Ray and Prometheus are away here: what it does with them is tested on the embedded stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from chart_tools import Helm
from data_plane import DataPlane, Start, until

OWNER = "Deployment/semr-evolution"


@pytest.fixture(scope="module")
def plane(helm: Helm, start: Start) -> Iterator[DataPlane]:
    """With the object store."""
    with start(helm.render("SEMR")) as made:
        made.serve("StatefulSet/semr-minio")
        made.node.start(made.pod("Job/semr-minio-setup")).wait()
        made.serve(OWNER)
        yield made


@pytest.fixture
def url(plane: DataPlane) -> str:
    return plane.node.url(8500)


def webhook(plane: DataPlane) -> tuple[str, str]:
    """Path and token that Alertmanager is given."""
    (receiver,) = plane.node.rendered.get("AlertmanagerConfig", "semr-evolution")["spec"]["receivers"]
    (config,) = receiver["webhookConfigs"]
    authorization = config["httpConfig"]["authorization"]
    assert authorization["type"] == "Bearer"
    credentials = authorization["credentials"]
    parts = urlsplit(config["url"])
    assert parts.netloc == "semr-evolution.ml.svc.cluster.local:8500"
    return parts.path, plane.node.data("Secret", credentials["name"])[credentials["key"]]


def alert(fingerprint: str) -> dict[str, Any]:
    return {
        "status": "firing",
        "labels": {"alertname": "ModelInputDrift", "model": "mnist", "semr": "evolution", "severity": "warning"},
        "annotations": {"summary": "drift"},
        "startsAt": datetime.now(timezone.utc).isoformat(),
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": fingerprint,
    }


def send(plane: DataPlane, url: str, token: str, fingerprint: str) -> httpx.Response:
    path, _ = webhook(plane)
    message = {"version": "4", "alerts": [alert(fingerprint)]}
    return httpx.post(
        url + path, json=message, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False
    )


def test_it_tells_that_others_are_away_and_stays(plane: DataPlane, url: str) -> None:
    told = until("a report", lambda: httpx.get(f"{url}/healthz", trust_env=False).json())
    assert told["status"] in ("ok", "waiting")
    assert not told["stopped_threads"]


def test_helm_test_finds_it(plane: DataPlane) -> None:
    """The pods of `helm test` for what runs here."""
    for what in ("minio", "evolution"):
        said = plane.node.start(plane.pod(f"Pod/semr-test-{what}")).wait(30)
        assert "Traceback" not in said


def test_metrics_are_where_the_service_monitor_looks(plane: DataPlane, url: str) -> None:
    (endpoint,) = plane.node.rendered.get("ServiceMonitor", "semr-evolution")["spec"]["endpoints"]
    answer = httpx.get(url + endpoint.get("path", "/metrics"), trust_env=False)
    assert answer.status_code == 200
    assert "semr_evolution_" in answer.text


def test_an_alert_with_the_token_of_alertmanager_is_taken_once(plane: DataPlane, url: str) -> None:
    assert send(plane, url, "guessed", "a").status_code == 401
    _, token = webhook(plane)
    first = send(plane, url, token, "a")
    assert first.status_code == 200, first.text
    assert first.json()["results"] == {"launched": 1}
    again = send(plane, url, token, "a")
    assert again.status_code == 200
    assert not again.json()["launched"]


def test_a_launch_survives_kill_9_of_the_pod(plane: DataPlane, url: str) -> None:
    _, token = webhook(plane)
    send(plane, url, token, "b")
    headers = {"Authorization": f"Bearer {token}"}

    def launches() -> list[str]:
        history = httpx.get(f"{url}/api/v1/models/mnist/history", headers=headers, timeout=30, trust_env=False).json()
        return sorted({each["launch_id"] for each in history["records"] if each.get("launch_id")})

    before = until("a launch", launches)
    plane.kill(OWNER)
    plane.serve(OWNER)
    assert until("the launches", launches) == before


def test_nothing_of_the_contract_is_told(plane: DataPlane, url: str) -> None:
    _, token = webhook(plane)
    secrets = [*plane.node.data("Secret", "semr-contract").values(), token]
    told = plane.servers[OWNER].output + httpx.get(f"{url}/healthz", trust_env=False).text
    assert not [each for each in secrets if each in told]
