"""What the Prometheus operator makes of the charts' monitors, rules and AlertmanagerConfig, and what servers do with that."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from bed import Bed
from chart_tools import ROOT, values_given_to, values_of
from cluster_tools import Cluster
from monitoring_site import (
    ALERTMANAGER,
    alertmanager_config,
    mailbox,
    order_servers,
    prometheus_config,
    rule_files,
    running_alertmanager,
    running_prometheus,
    start_operator,
)

from semr.evolution.alerts import WebhookMessage

RELEASE, INFERENCE = "semr", "inference-mnist"
#: Names of the groups of rules.
GROUPS = {
    group["name"]
    for path in (ROOT / "helm_charts" / "SEMR" / "rules").glob("*.yaml")
    for group in yaml.safe_load(path.read_text())["groups"]
}
#: Monitors for what is not here: another chart's server, and model servers that were put there by hand.
WITHOUT_PODS = {"podMonitor/semr-flyte/0", "podMonitor/semr-inference/0"}
#: Job of a monitor to the ports at which it has to find a pod.
TARGETS = {
    "serviceMonitor/semr-mlflow/0": {5000},
    "serviceMonitor/semr-minio/0": {9000},
    "serviceMonitor/semr-evolution/0": {8500},
    "podMonitor/semr-ray/0": {8080},
    "podMonitor/semr-ray/1": {44217},
    "podMonitor/semr-ray/2": {44227},
    "serviceMonitor/inference-mnist/0": {8080},
}
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[tuple[Cluster, str]]:
    """Both charts in a namespace, with a Prometheus and an Alertmanager for it."""
    if not ALERTMANAGER:
        pytest.skip("no Alertmanager on PATH: helper_scripts/env-prepare.sh brings it")
    if not cluster.simulated:
        pytest.skip("the operator of an existing cluster has servers of its own")
    bed: Bed = request.getfixturevalue("bed")
    start_operator(bed)
    with cluster.namespace() as namespace:
        cluster.install("SEMR", RELEASE, namespace)
        cluster.install(
            "SEMR_inference", INFERENCE, namespace, "--values", values_of("SEMR_inference", "everything-on-values")
        )
        order_servers(cluster, namespace, values_given_to(cluster.helm.render("SEMR"), "kube-prometheus-stack"))
        cluster.wait_for_ready(namespace, RELEASE)
        yield cluster, namespace


def test_every_monitor_becomes_a_job(site: tuple[Cluster, str]) -> None:
    wait_for_jobs(*site)


def wait_for_jobs(cluster: Cluster, namespace: str) -> None:
    monitors = cluster.all("servicemonitors,podmonitors", namespace)
    wanted = set()
    for each in monitors:
        kind = each["kind"][0].lower() + each["kind"][1:]
        endpoints = each["spec"].get("endpoints") or each["spec"]["podMetricsEndpoints"]
        wanted |= {f"{kind}/{namespace}/{each['metadata']['name']}/{number}" for number in range(len(endpoints))}
    assert wanted == {job.replace("/", f"/{namespace}/", 1) for job in WITHOUT_PODS | TARGETS.keys()}

    def missing() -> set[str]:
        config = prometheus_config(cluster, namespace)
        return wanted - {each["job_name"] for each in config.get("scrape_configs") or []}

    cluster.wait(missing)


def test_every_rule_is_taken(site: tuple[Cluster, str]) -> None:
    wait_for_rules(*site)


def wait_for_rules(cluster: Cluster, namespace: str) -> None:
    def missing() -> set[str]:
        taken = [yaml.safe_load(text) for text in rule_files(cluster, namespace).values()]
        return GROUPS - {group["name"] for each in taken for group in each["groups"]}

    cluster.wait(missing)


def test_prometheus_finds_a_pod_for_every_job_and_runs_every_rule(
    site: tuple[Cluster, str], bed: Bed, tmp_path: Path
) -> None:
    cluster, namespace = site
    wait_for_jobs(cluster, namespace)
    wait_for_rules(cluster, namespace)
    with running_prometheus(cluster, namespace, bed.programs, tmp_path) as url:
        found: dict[str, list[dict[str, Any]]] = {}

        def missing() -> dict[str, Any]:
            found.clear()
            answer = httpx.get(f"{url}/api/v1/targets?state=active", trust_env=False).json()
            for target in answer["data"]["activeTargets"]:
                found.setdefault(target["scrapePool"].replace(f"/{namespace}/", "/"), []).append(target)
            return {job: sorted(found) for job in TARGETS if job not in found}

        cluster.wait(missing, 60)
        for job, ports in TARGETS.items():
            assert {httpx.URL(each["scrapeUrl"]).port for each in found[job]} == ports, job
            for each in found[job]:
                assert each["labels"]["namespace"] == namespace
        ray = {(each["labels"]["ray_cluster"], each["labels"]["ray_role"]) for each in found["podMonitor/semr-ray/0"]}
        assert {("ray-jobs", "head"), ("ray-serving", "head"), ("ray-serving", "worker")} <= ray
        groups = httpx.get(f"{url}/api/v1/rules", trust_env=False).json()["data"]["groups"]
        assert {each["name"] for each in groups} >= GROUPS


def test_alertmanager_tells_the_evolution_service_and_nobody_else(site: tuple[Cluster, str], tmp_path: Path) -> None:
    cluster, namespace = site

    def missing() -> bool:
        return "semr-evolution" not in json.dumps(alertmanager_config(cluster, namespace))

    cluster.wait(missing)
    secret = cluster.get("secret", "semr-contract", namespace)
    assert secret is not None
    service = f"http://semr-evolution.{namespace}.svc.cluster.local:8500"
    with (
        mailbox() as (address, letters),
        running_alertmanager(cluster, namespace, tmp_path, {service: address}) as url,
    ):
        # As a model outside the release's namespace raises it: the route must not ask for a namespace.
        for_evolution = {
            "alertname": "ModelInputDrift",
            "semr": "evolution",
            "model": "mnist",
            "namespace": "elsewhere",
        }
        others = [{"alertname": "NodeDown"}, {"alertname": "ModelErrors", "semr": "operators", "model": "mnist"}]
        now = datetime.now(timezone.utc).isoformat()
        alerts = [{"labels": labels, "startsAt": now} for labels in (for_evolution, *others)]
        assert httpx.post(f"{url}/api/v2/alerts", json=alerts, trust_env=False).status_code == 200
        cluster.wait(lambda: not letters, 30)
    assert letters
    told = [alert for letter in letters for alert in WebhookMessage.model_validate_json(letter.body).alerts]
    assert {(alert.name, alert.model) for alert in told} == {("ModelInputDrift", "mnist")}
    token = base64.b64decode(secret["data"]["SEMR_EVOLUTION_TOKEN"]).decode()
    assert {(letter.path, letter.authorization) for letter in letters} == {("/api/v1/alerts", f"Bearer {token}")}
