"""Beside each other, without each other, and under Pod Security "restricted": a real API server, simulated nodes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import pytest
from chart_tools import PROFILES
from cluster_tools import Cluster, profile_arguments

pytestmark = pytest.mark.timeout(500)
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
#: Each component switched off, with what has to be said instead, and a kind/name that is then gone.
OFF = {
    "postgresql": (
        ("postgresql.enabled=false", "postgresql.external.host=db.example.org", "postgresql.auth.existingSecret=semr-database",
         "flyte-binary.enabled=false"),
        "statefulset/semr-postgresql",
    ),
    "minio": (
        ("minio.enabled=false", "minio.external.endpoint=https://s3.example.org", "minio.auth.existingSecret=semr-s3",
         "contract.existingSecret=semr-credentials", "ray.auth.existingSecret=semr-ray-token", "flyte-binary.enabled=false"),
        "statefulset/semr-minio",
    ),
    "mlflow": (("mlflow.enabled=false", "mlflow.external.url=http://mlflow.example.org"), "deployment/semr-mlflow"),
    "ray.jobs": (("ray.jobs.enabled=false", "ray.external.dashboardUrl=http://ray:8265"), "raycluster/semr-ray"),
    "ray.jobs.autoscaling": (("ray.jobs.autoscaling=false",), "role/semr-ray"),
    "ray.serving": (("ray.serving.enabled=false",), "rayservice/semr-serving"),
    "evolution": (("evolution.enabled=false",), "deployment/semr-evolution"),
    "evolution.persistence": (("evolution.persistence.enabled=false",), ""),
    "flyte": (("flyte-binary.enabled=false", "flyte.taskPodTemplate.enabled=false"), "podtemplate/semr-tasks"),
    "monitoring": (
        ("monitoring.enabled=false", "kube-prometheus-stack.enabled=false"), "servicemonitor/semr-mlflow",
    ),
    "monitoring.rules": (("monitoring.rules.enabled=false",), ""),
    "monitoring.alertmanagerConfig": (("monitoring.alertmanagerConfig.enabled=false",), "alertmanagerconfig/semr-evolution"),
    "monitoring.dashboards": (("monitoring.dashboards.enabled=false",), "configmap/semr-dashboard-overview"),
    "networkPolicy": (("networkPolicy.enabled=false",), "networkpolicy/semr-default-deny"),
    "tests": (("tests.enabled=false",), "serviceaccount/semr-test"),
    "kuberay-operator": (("kuberay-operator.enabled=false",), "configmap/stand-in-kuberay-operator"),
    "kube-prometheus-stack": (("kube-prometheus-stack.enabled=false",), "configmap/stand-in-kube-prometheus-stack"),
}  # fmt: skip


@pytest.fixture(scope="module")
def everything(cluster: Cluster) -> Iterator[str]:
    """A namespace with the defaults, from which one component after another is taken."""
    with cluster.namespace("off") as name:
        cluster.install("SEMR", "semr", name)
        yield name


@pytest.mark.parametrize("component", OFF)
def test_without_a_component_and_with_it_again_on_simulated_nodes(
    cluster: Cluster, everything: str, component: str
) -> None:
    sets, gone = OFF[component]
    cluster.install("SEMR", "semr", everything, *[f"--set={each}" for each in sets], verb="upgrade")
    cluster.wait_for_ready(everything, "semr")
    if gone:
        kind, name = gone.split("/")
        cluster.wait(lambda: cluster.get(kind, name, everything))
    cluster.install("SEMR", "semr", everything, "--reset-values", verb="upgrade")
    cluster.wait_for_ready(everything, "semr")
    if gone:
        assert cluster.get(kind, name, everything)


def test_two_installations_in_two_namespaces_and_two_in_one(cluster: Cluster, namespace: str) -> None:
    # The stand-ins for other charts, unlike these, have the same names in each release.
    own = [f"--set={chart}.enabled=false" for chart in ("kuberay-operator", "flyte-binary", "kube-prometheus-stack")]
    with cluster.namespace("second") as other:
        cluster.install("SEMR", "semr", namespace)
        cluster.install("SEMR", "semr", other)
        cluster.install("SEMR", "again", other, *own)
        for where, release in ((namespace, "semr"), (other, "semr"), (other, "again")):
            cluster.wait_for_ready(where, release)
        # One goes, and takes nothing of the others with it.
        done = cluster.helm_run("uninstall", "semr", namespace=other, arguments=("--wait",))
        assert done.returncode == 0, done.stderr
        cluster.wait_for_ready(namespace, "semr")
        cluster.wait_for_ready(other, "again")
        assert cluster.get("deployment", "again-mlflow", other) and cluster.get("deployment", "semr-mlflow", namespace)


@pytest.mark.parametrize(
    ("chart", "profile"),
    [("SEMR", None), ("SEMR", "everything-on-values"), ("SEMR", "edge-values"), *(
        ("SEMR_inference", each.stem) for each in PROFILES["SEMR_inference"][1]
    )],
)  # fmt: skip
def test_a_restricted_namespace_admits_all_pods(cluster: Cluster, chart: str, profile: str | None) -> None:
    """Those of the charts, those that the KubeRay operator makes of them, those of `helm test`, and Flyte's tasks."""
    release = PROFILES[chart][0]
    with cluster.namespace("restricted", RESTRICTED) as name:
        done = cluster.helm_run(
            "install",
            release,
            cluster.helm.charts / chart,
            namespace=name,
            arguments=tuple(profile_arguments(chart, profile)),
        )
        assert done.returncode == 0, done.stderr
        assert "would violate PodSecurity" not in done.stderr, done.stderr
        cluster.wait_for_ready(name, release)
        done = cluster.helm_run("test", release, namespace=name, arguments=("--timeout=60s",))
        assert done.returncode == 0, done.stdout + done.stderr
        for template in cluster.all("podtemplates", name):
            pod = copy.deepcopy(template["template"])
            pod |= {"apiVersion": "v1", "kind": "Pod"}
            pod["metadata"] = {"name": "task", "labels": pod["metadata"]["labels"]}
            cluster.kubectl("create", "-f", "-", f"--namespace={name}", "--dry-run=server", text=json.dumps(pod))


def test_a_restricted_namespace_refuses_others(cluster: Cluster) -> None:
    """The test above is able to fail."""
    with cluster.namespace("restricted", RESTRICTED) as name:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }
        done = cluster.kubectl("create", "-f", "-", f"--namespace={name}", text=json.dumps(pod), check=False)
        assert done.returncode != 0 and "violates PodSecurity" in done.stderr
