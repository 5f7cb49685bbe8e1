"""Upgrades: two renders are equal, given what the cluster has; credentials and deployed models stay."""

from __future__ import annotations

import base64
import copy
from pathlib import Path

import pytest
from chart_tools import Helm, Rendered, own, parse, values_of
from cluster_stand_in import StandIn


def render(helm: Helm, cluster: StandIn, folder: Path, *arguments: str | Path) -> Rendered:
    done = helm.template("SEMR", *cluster.arguments(folder), *arguments)
    assert done.returncode == 0, done.stderr
    return own(parse(done.stdout))


@pytest.mark.parametrize("profile", ["values_example", "everything-on-values"])
def test_second_render_equals_the_first(helm: Helm, cluster: StandIn, tmp_path: Path, profile: str) -> None:
    values = ["--values", values_of("SEMR", profile)]
    first = render(helm, cluster, tmp_path, *values)
    # It is able to fail: without a cluster that remembers, credentials are made anew.
    assert render(helm, cluster, tmp_path, *values).of("Secret") != first.of("Secret")
    for each in first.of("Secret", "RayService", "RayCluster"):
        cluster.add(each)
    second = render(helm, cluster, tmp_path, *values)
    assert second.objects == first.objects


def test_a_new_chart_version_restarts_no_pod(helm: Helm, tmp_path: Path) -> None:
    import shutil

    newer = tmp_path / "helm_charts"
    shutil.copytree(helm.charts, newer)
    description = newer / "SEMR" / "Chart.yaml"
    description.write_text(description.read_text().replace("version: 0.1.0", "version: 0.2.0", 1))
    other = Helm(helm.program, newer)
    before = {pod.owner: (pod.spec, pod.annotations) for pod in own(helm.render("SEMR", "values_example")).pods}
    after = {pod.owner: (pod.spec, pod.annotations) for pod in own(other.render("SEMR", "values_example")).pods}
    assert after == before


def test_a_changed_endpoint_restarts_its_reader(helm: Helm) -> None:
    def checksum(rendered: Rendered, name: str) -> str:
        text: str = rendered.get("Deployment", name)["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        return text

    before, after = helm.render("SEMR", None), helm.render("SEMR", None, "minio.region=eu-west-1")
    for name in ("semr-mlflow", "semr-evolution"):
        assert checksum(before, name) != checksum(after, name)
    policy = helm.render("SEMR", None, "evolution.policy.models.mnist.cooldown_seconds=60")
    assert checksum(policy, "semr-evolution") != checksum(before, "semr-evolution")
    assert checksum(policy, "semr-mlflow") == checksum(before, "semr-mlflow")


def test_jobs_that_change_have_another_name(helm: Helm) -> None:
    def jobs(rendered: Rendered) -> dict[str, str]:
        return {each["metadata"]["name"].rpartition("-")[0]: each["metadata"]["name"] for each in rendered.of("Job")}

    before, same = jobs(helm.render("SEMR", None)), jobs(helm.render("SEMR", "values_example"))
    assert before == same
    changed = jobs(helm.render("SEMR", None, "contract.datasetsBucket=other-datasets"))
    assert changed["semr-minio-setup"] != before["semr-minio-setup"]
    assert changed["semr-postgresql-setup"] == before["semr-postgresql-setup"]


def test_no_manifest_says_which_models_are_served(helm: Helm) -> None:
    """Else an upgrade, and a rollback, which cannot look up what is served, would take models out of service."""
    for profile in (None, "everything-on-values"):
        for service in helm.render("SEMR", profile).of("RayService"):
            assert "serveConfigV2" not in service["spec"]


def test_workers_that_the_autoscaler_started_stay(helm: Helm, cluster: StandIn, tmp_path: Path) -> None:
    ray = copy.deepcopy(render(helm, cluster, tmp_path).get("RayCluster", "semr-ray"))
    ray["spec"]["workerGroupSpecs"][0] |= {"replicas": 2, "scaleStrategy": {"workersToDelete": ["w"]}}
    cluster.add(ray)
    (group,) = render(helm, cluster, tmp_path).get("RayCluster", "semr-ray")["spec"]["workerGroupSpecs"]
    assert group["replicas"] == 2 and group["scaleStrategy"] == {"workersToDelete": ["w"]}
    (fewer,) = render(helm, cluster, tmp_path, "--set", "ray.jobs.workerGroups.amd64.maxReplicas=1").get(
        "RayCluster", "semr-ray"
    )["spec"]["workerGroupSpecs"]
    assert fewer["replicas"] == 1


def test_generated_credentials_are_long_and_all_different(helm: Helm) -> None:
    values = []
    for each in helm.render("SEMR", "everything-on-values").of("Secret"):
        for key, value in each["data"].items():
            text = base64.b64decode(value).decode()
            if key in ("username", "admin-user"):
                continue
            assert len(text) >= 12, key
            if key != "auth_token":  # the same as in the contract
                values.append(text)
    assert len(values) == len(set(values)) >= 14


def test_a_key_that_is_new_is_added_to_a_kept_secret(helm: Helm, cluster: StandIn, tmp_path: Path) -> None:
    secret = copy.deepcopy(render(helm, cluster, tmp_path).get("Secret", "semr-postgresql"))
    del secret["data"]["flyte-password"]
    cluster.add(secret)
    again = render(helm, cluster, tmp_path).get("Secret", "semr-postgresql")["data"]
    assert again["mlflow-password"] == secret["data"]["mlflow-password"] and again["flyte-password"]


def test_data_and_credentials_outlive_the_release(helm: Helm) -> None:
    for each in helm.render("SEMR", "everything-on-values").of("Secret", "PersistentVolumeClaim"):
        assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep", each["metadata"]["name"]
