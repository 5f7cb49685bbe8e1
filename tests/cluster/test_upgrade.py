"""Upgrades, rollbacks and changed values of the chart SEMR on a real API server; pods are those of simulated nodes."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from chart_tools import CHARTS, ROOT, Helm, Object, copy_charts, own, parse
from cluster_tools import Cluster, profile_arguments

from semr.deployment.ray_serve import DEPLOYMENT

pytestmark = pytest.mark.timeout(500)
RELEASE = "semr"
# Helm 4 applies on the server's side; without it, the merge on the client's side is that of Helm 3.
WAYS = {"server-side": ("--force-conflicts",), "client-side": ("--server-side=false",)}
MODELS = yaml.safe_dump(
    {"applications": [{"name": "mnist", "import_path": "x:y", "deployments": [{"name": DEPLOYMENT}]}]}
)


@pytest.fixture(scope="module")
def previous_charts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The charts of the last release (the newest tag), else those before the last commit that changed them."""
    revision = _git("describe", "--tags", "--abbrev=0")
    if not revision:
        changed = _git("diff", "--name-only", "HEAD", "--", str(CHARTS))
        commits = _git("log", "-n", "2", "--format=%H", "--", str(CHARTS)).split()
        revision = commits[0] if changed or len(commits) < 2 else commits[1]
    folder = tmp_path_factory.mktemp("previous")
    archive = subprocess.run(["git", "archive", revision, "helm_charts"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return copy_charts(folder / "copies", folder / "helm_charts")


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[str]:
    """A namespace in which the defaults are installed, for tests that put back what they change."""
    with cluster.namespace("upgrade") as name:
        cluster.install("SEMR", RELEASE, name)
        cluster.wait_for_ready(name, RELEASE)
        yield name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("profile", [None, "everything-on-values"])
def test_upgrade_from_the_last_release_and_back(
    cluster: Cluster, namespace: str, previous_charts: Path, profile: str | None, way: str
) -> None:
    previous = Cluster(
        cluster.kubectl_program, cluster.kubeconfig, Helm(cluster.helm.program, previous_charts), cluster.simulated
    )
    first = () if way == "server-side" else ("--server-side=false",)
    previous.install("SEMR", RELEASE, namespace, *profile_arguments("SEMR", profile), *first)
    cluster.wait_for_ready(namespace, RELEASE)
    manifest = _templates(cluster, namespace)
    secrets, pods = _secrets(cluster, namespace), cluster.pod_hashes(namespace, RELEASE)
    deploy_models(cluster, namespace)

    cluster.install("SEMR", RELEASE, namespace, *profile_arguments("SEMR", profile), *WAYS[way], verb="upgrade")
    cluster.wait_for_ready(namespace, RELEASE)
    assert _secrets(cluster, namespace).items() >= secrets.items()
    changed = {name for name, template in _templates(cluster, namespace).items() if manifest.get(name) != template}
    after = cluster.pod_hashes(namespace, RELEASE)
    for component, names in pods.items():
        if component not in changed:
            assert after[component] == names, f"{component} was restarted, though its pods are to be the same"

    deploy_models(cluster, namespace)
    done = cluster.helm_run(
        "rollback", RELEASE, "1", namespace=namespace, arguments=WAYS[way][:1] if way == "server-side" else ()
    )
    assert done.returncode == 0, done.stderr
    cluster.wait_for_ready(namespace, RELEASE)
    assert _secrets(cluster, namespace).items() >= secrets.items()


@pytest.mark.parametrize("way", WAYS)
def test_the_same_again_restarts_no_pod(cluster: Cluster, installed: str, way: str) -> None:
    before = cluster.pod_hashes(installed, RELEASE)
    assert {"mlflow", "evolution", "postgresql", "minio", "ray-jobs", "ray-serving"} <= set(before)
    secrets = _secrets(cluster, installed)
    arguments = () if way == "server-side" else WAYS[way]
    cluster.install("SEMR", RELEASE, installed, *arguments, verb="upgrade")
    cluster.wait_for_ready(installed, RELEASE)
    assert cluster.pod_hashes(installed, RELEASE) == before
    assert _secrets(cluster, installed) == secrets


def test_a_changed_value_restarts_its_component_alone(cluster: Cluster, installed: str) -> None:
    before = cluster.pod_hashes(installed, RELEASE)
    cluster.install("SEMR", RELEASE, installed, "--set", "mlflow.workers=3", verb="upgrade")
    cluster.wait_for_ready(installed, RELEASE)
    after = cluster.pod_hashes(installed, RELEASE)
    assert after.pop("mlflow") != before.pop("mlflow")
    assert after == before


def test_served_models_and_workers_outlive_upgrade_and_rollback(cluster: Cluster, installed: str) -> None:
    """What Helm does not own: the applications in the RayService, and the number of workers."""
    deploy_models(cluster, installed)
    scale_workers(cluster, installed, 2)
    revision = _revision(cluster, installed)
    for verb in ("upgrade", "upgrade"):
        cluster.install("SEMR", RELEASE, installed, "--force-conflicts", "--set=mlflow.workers=4", verb=verb)
        assert _served(cluster, installed) == MODELS
        assert _workers(cluster, installed) == 2
    done = cluster.helm_run("rollback", RELEASE, str(revision), namespace=installed, arguments=("--force-conflicts",))
    assert done.returncode == 0, done.stderr
    assert _served(cluster, installed) == MODELS


def test_an_upgrade_after_a_deployment_needs_no_force(cluster: Cluster, installed: str) -> None:
    """Helm 4 refuses to write a field that another one owns: the chart must not name what deployments write."""
    with cluster.namespace("deployed") as name:
        arguments = ("--set=ray.jobs.autoscaling=false",)
        cluster.install("SEMR", RELEASE, name, *arguments)
        deploy_models(cluster, name)
        cluster.install("SEMR", RELEASE, name, *arguments, "--set=mlflow.workers=3", verb="upgrade")
        done = cluster.helm_run("rollback", RELEASE, "1", namespace=name)
        assert done.returncode == 0, done.stderr
        assert _served(cluster, name) == MODELS


@pytest.mark.parametrize(
    "changes",
    [
        ("ray.gcsFaultTolerance.storageSize=4Gi",),
        ("ray.jobs.autoscaling=false",),
        ("mlflow.replicas=3",),
        ("mlflow.auth.enabled=true",),
        ("contract.datasetsBucket=other-datasets", "contract.deploymentTarget=helm"),
        ("general.podLabels.team=ml", "general.podAnnotations.owner=ml", "general.priorityClassName=semr"),
        ("gateway.type=nodePort", "general.host=semr.example.org"),
        ("gateway.type=ingress", "general.host=semr.example.org"),
        (
            "postgresql.persistence.enabled=false",
            "minio.persistence.enabled=false",
            "evolution.persistence.enabled=false",
        ),
        ("general.nodeSelector.kubernetes\\.io/arch=arm64", "ray.jobs.workerGroups.arm64.enabled=true"),
    ],
    ids=lambda changes: changes[0].split("=")[0],
)
def test_no_change_meets_an_immutable_field(cluster: Cluster, fault_tolerant: str, changes: tuple[str, ...]) -> None:
    """There and back again, each with all pods ready on simulated nodes."""
    base = ("--set=ray.gcsFaultTolerance.enabled=true",)
    for each in ([f"--set={change}" for change in changes], []):
        cluster.install("SEMR", RELEASE, fault_tolerant, *base, *each, verb="upgrade")
        cluster.wait_for_ready(fault_tolerant, RELEASE)


@pytest.fixture(scope="module")
def fault_tolerant(cluster: Cluster) -> Iterator[str]:
    """A namespace with the defaults and Ray's state in Redis."""
    with cluster.namespace("changes") as name:
        cluster.install("SEMR", RELEASE, name, "--set=ray.gcsFaultTolerance.enabled=true")
        yield name


def deploy_models(cluster: Cluster, namespace: str) -> None:
    """What a deployment writes into the RayService, under another name than Helm's."""
    _patch(cluster, namespace, "rayservice", "semr-serving", "merge", {"spec": {"serveConfigV2": MODELS}})


def scale_workers(cluster: Cluster, namespace: str, workers: int) -> None:
    """What Ray's autoscaler does."""
    patch = [{"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": workers}]
    _patch(cluster, namespace, "raycluster", "semr-ray", "json", patch)


def _patch(cluster: Cluster, namespace: str, kind: str, name: str, how: str, patch: object) -> None:
    where = [f"--namespace={namespace}", f"--type={how}", "--field-manager=someone-else"]
    cluster.kubectl("patch", kind, name, *where, f"--patch={json.dumps(patch)}")


def _served(cluster: Cluster, namespace: str) -> str:
    service = cluster.get("rayservice", "semr-serving", namespace)
    assert service is not None
    return str(service["spec"].get("serveConfigV2"))


def _workers(cluster: Cluster, namespace: str) -> int:
    ray = cluster.get("raycluster", "semr-ray", namespace)
    assert ray is not None
    return int(ray["spec"]["workerGroupSpecs"][0]["replicas"])


def _secrets(cluster: Cluster, namespace: str) -> dict[str, Object]:
    """Generated credentials."""
    found = cluster.all("secrets", namespace, f"app.kubernetes.io/instance={RELEASE}")
    return {each["metadata"]["name"]: each["data"] for each in found}


def _templates(cluster: Cluster, namespace: str) -> dict[str, str]:
    """Pod templates of the release's manifest by component."""
    manifest = cluster.helm_run("get", "manifest", RELEASE, namespace=namespace).stdout
    found: dict[str, list[object]] = {}
    for pod in own(parse(manifest)).pods:
        component = pod.labels.get("app.kubernetes.io/component", "")
        found.setdefault(component, []).append([pod.owner, pod.labels, pod.annotations, pod.spec])
    return {component: json.dumps(pods, sort_keys=True) for component, pods in found.items()}


def _revision(cluster: Cluster, namespace: str) -> int:
    done = cluster.helm_run("history", RELEASE, namespace=namespace, arguments=("--output=json",))
    return int(json.loads(done.stdout)[-1]["revision"])


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
