"""Releases of the chart semr-inference, by helm and by the deployment target, with the rights that the chart SEMR gives.

Pods are those of simulated nodes: a version "comes into service" when kwok says that its pods are ready.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import NEVER_READY
from cluster_tools import Cluster

from semr.deployment.helm import HelmTarget
from semr.deployment.target import DeploymentError
from semr.registry import ModelVersionRef
from semr.settings import Settings

pytestmark = pytest.mark.timeout(400)
RELEASE = "inference-mnist"
BASE = ("--set=model.name=mnist", "--set=mlflow.url=http://semr-mlflow:5000")


@pytest.fixture(params=["server-side", "client-side"])
def applying(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """How Helm 4 applies; on the client's side it merges as Helm 3 does."""
    return () if request.param == "server-side" else ("--server-side=false",)


def test_another_version_and_back_on_simulated_nodes(
    cluster: Cluster, namespace: str, applying: tuple[str, ...]
) -> None:
    wait = ("--wait", "--timeout=90s")
    cluster.install("SEMR_inference", RELEASE, namespace, *BASE, "--set=model.version=7", *wait, *applying)
    first = cluster.pod_hashes(namespace, RELEASE)
    keep = ("--reset-then-reuse-values", "--set=model.version=8")
    cluster.install("SEMR_inference", RELEASE, namespace, *keep, *wait, *applying, verb="upgrade")
    assert _served(cluster, namespace) == "models:/mnist/8"
    assert cluster.pod_hashes(namespace, RELEASE) != first
    done = cluster.helm_run("rollback", RELEASE, namespace=namespace, arguments=wait)
    assert done.returncode == 0, done.stderr
    assert _served(cluster, namespace) == "models:/mnist/7"


def test_an_upgrade_that_does_not_become_ready_takes_itself_back(
    cluster: Cluster, namespace: str, applying: tuple[str, ...]
) -> None:
    """The pods of version 8 stay unready, as simulated kubelets are told to; those of version 7 serve all the time."""
    _needs_simulation(cluster)
    cluster.install("SEMR_inference", RELEASE, namespace, *BASE, "--set=model.version=7", "--wait", *applying)
    before = cluster.pod_hashes(namespace, RELEASE)
    broken = (f"--set-string=podAnnotations.{NEVER_READY}=true", "--set=model.version=8", "--reset-then-reuse-values")
    done = cluster.helm_run(
        "upgrade", RELEASE, cluster.helm.charts / "SEMR_inference", namespace=namespace,
        arguments=(*broken, "--wait", "--timeout=10s", "--rollback-on-failure", *applying),
    )  # fmt: skip
    assert done.returncode != 0
    assert _served(cluster, namespace) == "models:/mnist/7"
    cluster.wait_for_ready(namespace, RELEASE)
    assert cluster.pod_hashes(namespace, RELEASE) == before, "the pods that served were touched"
    history = json.loads(cluster.helm_run("history", RELEASE, namespace=namespace, arguments=("--output=json",)).stdout)
    assert history[-1]["status"] == "deployed" and "Rollback" in history[-1]["description"]


@pytest.mark.parametrize(
    "changes",
    [
        ("autoscaling.enabled=true",),
        ("service.type=NodePort",),
        ("canary.enabled=true", "canary.version=8", "replicas=3"),
        ("gateway.type=ingress", "gateway.host=mnist.example.org"),
        ("gateway.type=httpRoute", "gateway.host=mnist.example.org", "gateway.parentRefs[0].name=public",
         "canary.enabled=true", "canary.version=8"),
        ("networkPolicy.enabled=false", "monitoring.enabled=false", "podDisruptionBudget.enabled=false", "replicas=2"),
    ],
    ids=lambda changes: changes[0].split("=")[0] + "=" + changes[0].split("=")[1],
)  # fmt: skip
def test_no_change_meets_an_immutable_field(cluster: Cluster, inference: str, changes: tuple[str, ...]) -> None:
    for each in ([f"--set={change}" for change in changes], []):
        cluster.install(
            "SEMR_inference",
            RELEASE,
            inference,
            *BASE,
            "--set=model.version=7",
            "--set=replicas=2",
            *each,
            verb="upgrade",
        )
        cluster.wait_for_ready(inference, RELEASE)


def test_switching_the_autoscaler_on_keeps_the_pods(cluster: Cluster, inference: str) -> None:
    """The number of pods leaves the chart's hands; on the way it must not fall to the API's default of one."""
    base = (*BASE, "--set=model.version=7")
    cluster.install("SEMR_inference", RELEASE, inference, *base, "--set=replicas=3", verb="upgrade")
    cluster.wait_for_ready(inference, RELEASE)
    scale = ("--set=autoscaling.enabled=true", "--set=autoscaling.minReplicas=3")
    cluster.install("SEMR_inference", RELEASE, inference, *base, *scale, verb="upgrade")
    deployment = cluster.get("deployment", RELEASE, inference)
    assert deployment is not None and deployment["spec"]["replicas"] == 3


def test_a_canary_has_requests_of_a_gateway_when_it_answers(cluster: Cluster, inference: str) -> None:
    """The same command twice: the first time there are no pods yet that could answer."""
    arguments = [
        *BASE,
        "--set=model.version=7",
        "--set=gateway.type=httpRoute,gateway.host=mnist.example.org,gateway.parentRefs[0].name=public",
    ]
    cluster.install("SEMR_inference", RELEASE, inference, *arguments, verb="upgrade")
    cluster.wait_for_ready(inference, RELEASE)

    def upgrade() -> tuple[list[int], str]:
        done = cluster.helm_run(
            "upgrade", RELEASE, cluster.helm.charts / "SEMR_inference", namespace=inference,
            arguments=(*arguments, "--set=canary.enabled=true,canary.version=8,canary.weight=30"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        route = cluster.get("httproute", RELEASE, inference)
        assert route is not None
        return [each["weight"] for each in route["spec"]["rules"][0]["backendRefs"]], done.stdout

    weights, notes = upgrade()
    assert weights == [100, 0] and "run the same command again" in notes
    cluster.wait_for_ready(inference, RELEASE)
    weights, notes = upgrade()
    assert weights == [70, 30] and "run the same command again" not in notes


@pytest.fixture(scope="module")
def inference(cluster: Cluster) -> Iterator[str]:
    """A namespace with a release."""
    with cluster.namespace("inference") as name:
        cluster.install("SEMR_inference", RELEASE, name, *BASE, "--set=model.version=7", "--set=replicas=2")
        yield name


@pytest.fixture(scope="module")
def deployer(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A namespace with SEMR for the target helm, and the kubeconfig of the deploying task's ServiceAccount there."""
    with cluster.namespace("deployer") as name:
        cluster.install("SEMR", "semr", name, "--set=contract.deploymentTarget=helm")
        yield name, str(cluster.token_kubeconfig("semr-tasks", name, tmp_path_factory.mktemp("account")))


@pytest.fixture
def target(cluster: Cluster, deployer: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HelmTarget:
    """The target as the deploying task has it: the real helm, the ServiceAccount's own rights and nothing else."""
    monkeypatch.setenv("KUBECONFIG", deployer[1])
    monkeypatch.setenv("HOME", str(tmp_path))
    contract = cluster.get("configmap", "semr-contract", deployer[0])
    assert contract is not None
    settings = Settings(
        mlflow_uri="http://semr-mlflow:5000", helm_values=contract["data"]["SEMR_HELM_VALUES"], _env_file=None
    )  # type: ignore[call-arg]
    return HelmTarget(settings, namespace=deployer[0], program=cluster.helm.program)


def _ref(version: int) -> ModelVersionRef:
    return ModelVersionRef(name="mnist", version=str(version), run_id="r", uri=f"models:/mnist/{version}", metrics={})


def test_the_target_helm_deploys_with_the_tasks_own_rights_on_simulated_nodes(
    cluster: Cluster, target: HelmTarget
) -> None:
    assert target.current("mnist") is None
    url = target.deploy(_ref(7), replicas=2, timeout_seconds=90)
    assert url == f"http://{RELEASE}.{target.namespace}.svc:8080"
    assert target.current("mnist") == "7" and _served(cluster, target.namespace) == "models:/mnist/7"
    deployment = cluster.get("deployment", RELEASE, target.namespace)
    assert deployment is not None
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert server["envFrom"] == [{"configMapRef": {"name": "semr-contract"}}], "it records nothing to learn from"
    target.deploy(_ref(8), timeout_seconds=90)
    assert target.current("mnist") == "8" and _served(cluster, target.namespace) == "models:/mnist/8"
    target.roll_back("mnist", timeout_seconds=90)
    assert target.current("mnist") == "7" and _served(cluster, target.namespace) == "models:/mnist/7"


def test_the_target_helm_deploys_though_others_have_scaled(cluster: Cluster, target: HelmTarget) -> None:
    target.deploy(_ref(7), replicas=2, timeout_seconds=90)
    cluster.kubectl("scale", "deployment", RELEASE, "--replicas=3", f"--namespace={target.namespace}")
    target.deploy(_ref(9), timeout_seconds=90)
    assert _served(cluster, target.namespace) == "models:/mnist/9"


def test_the_target_helm_says_that_a_version_did_not_come_and_leaves_the_old_one(
    cluster: Cluster, target: HelmTarget
) -> None:
    _needs_simulation(cluster)
    target.deploy(_ref(7), timeout_seconds=90)
    before = cluster.pod_hashes(target.namespace, RELEASE)
    broken = HelmTarget(target.settings, namespace=target.namespace, program=target.program, chart=_broken(cluster))
    with pytest.raises(DeploymentError, match=r"models:/mnist/8 is not served"):
        broken.deploy(_ref(8), timeout_seconds=10)
    assert target.current("mnist") == "7" and _served(cluster, target.namespace) == "models:/mnist/7"
    cluster.wait_for_ready(target.namespace, RELEASE)
    assert cluster.pod_hashes(target.namespace, RELEASE) == before


def test_the_target_helm_takes_over_what_helm_3_made(cluster: Cluster, target: HelmTarget) -> None:
    """Applied on the client's side and scaled by hand: two reasons for which Helm 4 alone would refuse."""
    target.remove("mnist")
    first = ("--set=model.version=7", "--server-side=false")
    cluster.install("SEMR_inference", RELEASE, target.namespace, *BASE, *first)
    cluster.kubectl("scale", "deployment", RELEASE, "--replicas=2", f"--namespace={target.namespace}")
    target.deploy(_ref(8), timeout_seconds=90)
    assert target.current("mnist") == "8" and _served(cluster, target.namespace) == "models:/mnist/8"
    target.roll_back("mnist", timeout_seconds=90)
    assert _served(cluster, target.namespace) == "models:/mnist/7"


def test_the_target_helm_takes_over_what_served_an_alias(cluster: Cluster, target: HelmTarget) -> None:
    target.remove("mnist")
    alias = ("--set=model.alias=champion", "--set=model.follow=true", "--set=canary.enabled=true,canary.version=8")
    cluster.install("SEMR_inference", RELEASE, target.namespace, *BASE, *alias)
    target.deploy(_ref(8), timeout_seconds=90)
    assert _served(cluster, target.namespace) == "models:/mnist/8"
    assert cluster.get("deployment", f"{RELEASE}-canary", target.namespace) is None, "the canary is what all serve now"


@pytest.mark.parametrize("first", [True, False], ids=["install", "upgrade"])
def test_a_helm_that_is_killed_does_not_lock_the_release_for_good(
    cluster: Cluster, target: HelmTarget, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """As when the pod of the deploying task goes while helm waits for pods."""
    _needs_simulation(cluster)
    target.remove("mnist")
    if not first:
        target.deploy(_ref(7), timeout_seconds=90)
    command = [
        target.program, "upgrade", RELEASE, _broken(cluster), "--install", "--reset-then-reuse-values", *BASE,
        "--set=model.version=8", "--wait", "--timeout=300s", f"--namespace={target.namespace}",
    ]  # fmt: skip
    dying = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cluster.wait(lambda: _served_or_none(cluster, target.namespace) != "models:/mnist/8")
    dying.kill()
    dying.wait()
    with monkeypatch.context() as patch, pytest.raises(DeploymentError, match="in progress"):
        # Helm itself does not take the lock away, ever.
        patch.setattr(HelmTarget, "_settled", lambda *_: None)
        target.deploy(_ref(9), timeout_seconds=90)
    monkeypatch.setattr(HelmTarget, "_longest", lambda *_: 20.0)
    target.deploy(_ref(9), timeout_seconds=90)
    assert target.current("mnist") == "9" and _served(cluster, target.namespace) == "models:/mnist/9"


def test_the_target_helm_removes(cluster: Cluster, target: HelmTarget) -> None:
    target.deploy(_ref(7), timeout_seconds=90)
    target.remove("mnist")
    assert target.current("mnist") is None
    assert cluster.get("deployment", RELEASE, target.namespace) is None
    target.remove("mnist")


def _broken(cluster: Cluster) -> str:
    """The chart with pods that simulated kubelets never call ready."""
    import shutil

    folder = cluster.helm.charts.parent / "broken" / "SEMR_inference"
    if not folder.exists():
        shutil.copytree(cluster.helm.charts / "SEMR_inference", folder)
        values = folder / "values.yaml"
        values.write_text(
            values.read_text().replace("podAnnotations: {}", f'podAnnotations: {{{NEVER_READY}: "true"}}')
        )
    return str(folder)


def _needs_simulation(cluster: Cluster) -> None:
    if not cluster.simulated:
        pytest.skip("only simulated kubelets can be told to leave a pod unready")


def _served(cluster: Cluster, namespace: str) -> str:
    """The model URI in the pods' command line."""
    found = _served_or_none(cluster, namespace)
    assert found is not None
    return found


def _served_or_none(cluster: Cluster, namespace: str) -> str | None:
    deployment = cluster.get("deployment", RELEASE, namespace)
    if deployment is None:
        return None
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return str(next(each for each in container["args"] if each.startswith("--model="))).removeprefix("--model=")
