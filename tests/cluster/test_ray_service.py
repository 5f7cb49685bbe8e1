"""Deployments by the target Ray Serve through a RayService; API server, KubeRay operator, Ray, MLflow and object store are
real.

The pods are simulated: the Ray that the operator finds behind their services is that of an embedded stack on this machine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cluster_network import ClusterNetwork
from cluster_tools import Cluster, Object, existing_kubeconfig
from stack_tools import own_contract, require_programs
from workflow_tools import register_constant

from semr.deployment import ray_service, standby
from semr.deployment.ray_serve import RayServeTarget
from semr.deployment.ray_service import RayServiceApplications
from semr.deployment.target import DeploymentError
from semr.inference.client import InferenceClient
from semr.registry import ModelVersionRef
from semr.settings import Settings
from semr.stack import control

pytestmark = pytest.mark.timeout(600)
RELEASE, MODEL = "semr", "constant"


@dataclass
class Serving:
    """SEMR in a namespace, wired to a real Ray.

    Attributes:
        settings: the contract as the evolution service's pod would have it, with addresses that this machine reaches.
    """

    cluster: Cluster
    namespace: str
    settings: Settings
    accounts: Path

    @contextmanager
    def account(self, name: str) -> Iterator[None]:
        """As in a pod of this ServiceAccount."""
        folder = self.accounts / name
        folder.mkdir(exist_ok=True)
        token = self.cluster.kubectl("create", "token", name, f"--namespace={self.namespace}").stdout
        (folder / "token").write_text(token)
        (folder / "ca.crt").write_bytes(self.cluster.authority)
        host, _, port = self.cluster.server.removeprefix("https://").partition(":")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBERNETES_SERVICE_HOST", host)
            patch.setenv("KUBERNETES_SERVICE_PORT", port or "443")
            patch.setattr(ray_service, "_ACCOUNT", folder)
            yield

    @property
    def service(self) -> Object:
        found = self.cluster.get("rayservice", "semr-serving", self.namespace)
        assert found is not None
        return found

    @property
    def applications(self) -> list[str]:
        """What the RayService is told to run."""
        config = yaml.safe_load(self.service["spec"].get("serveConfigV2") or "") or {}
        return [each["name"] for each in config.get("applications", [])]

    def is_ready(self) -> bool:
        """Whether the operator says so."""
        conditions = self.service.get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


@pytest.fixture(scope="module")
def serving(
    cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """An embedded stack, and SEMR in a namespace with the same Ray token."""
    if existing_kubeconfig() is not None:
        pytest.skip("the Ray of this machine can only stand behind the pods of this run's own test bed")
    require_programs()
    network: ClusterNetwork = request.getfixturevalue("network")
    reused = os.environ.get("SEMR_TEST_STACK")
    base = Path(tempfile.mkdtemp(prefix="semr-test-"))
    folder = Path(reused) if reused else base / ".semr"
    try:
        with own_contract() as point_at, cluster.namespace("serving") as name:
            settings = control.up(folder)
            point_at(folder)
            token = settings.ray_auth_token.get_secret_value() if settings.ray_auth_token else "none"
            secrets = {"semr-credentials": {"SEMR_RAY_AUTH_TOKEN": token}, "semr-ray-token": {"auth_token": token}}
            for secret, data in secrets.items():
                each = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}, "stringData": data}
                cluster.apply(each, namespace=name)
            network.routes = {8265: settings.need("ray_dashboard_url"), 8000: settings.need("serve_url")}
            existing = (
                "--set=contract.existingSecret=semr-credentials",
                "--set=ray.auth.existingSecret=semr-ray-token",
            )
            cluster.install("SEMR", RELEASE, name, *existing, "--set=ray.jobs.enabled=false", "--set=evolution.enabled=true",
                            "--set=ray.external.dashboardUrl=http://ray:8265")  # fmt: skip
            cluster.wait_for_ready(name, RELEASE)
            wired = settings.model_copy(update={"ray_service": f"{name}/semr-serving"})
            yield Serving(cluster, name, wired, tmp_path_factory.mktemp("accounts"))
    finally:
        network.routes = {}
        if not reused:
            control.down(folder)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def versions(serving: Serving) -> tuple[ModelVersionRef, ModelVersionRef, ModelVersionRef]:
    """Versions 1 and 2 of a model, and version 3, which cannot be loaded."""
    return (
        register_constant(serving.settings, MODEL, 1.0),
        register_constant(serving.settings, MODEL, 2.0),
        register_constant(serving.settings, MODEL, 3.0, broken=True),
    )


def test_the_first_application_makes_the_service_ready(serving: Serving) -> None:
    """As the chart's setup job does it: its code, with its ServiceAccount."""
    assert not serving.is_ready()
    with serving.account("semr-serving-setup"):
        standby.put_standby(RayServiceApplications(str(serving.settings.ray_service)))
    serving.cluster.wait(lambda: not serving.is_ready() and serving.service.get("status"), 120)
    assert serving.applications == [standby.NAME]
    service = serving.cluster.get("service", "semr-serving-serve-svc", serving.namespace)
    assert service is not None, "the address that the contract names is not there"


@pytest.mark.parametrize("account", ["semr-evolution", "semr-tasks"])
def test_deployers_bring_versions_into_service_through_the_operator(
    serving: Serving, versions: tuple[ModelVersionRef, ...], account: str
) -> None:
    target = RayServeTarget(serving.settings)
    with serving.account(account):
        for ref in versions[:2]:
            url = target.deploy(ref, timeout_seconds=150)
            assert target.current(MODEL) == ref.version
            with InferenceClient(url, MODEL) as client:
                assert client.readiness(ref.version)[0]
            assert serving.applications == [standby.NAME, MODEL]
    statuses = serving.service["status"]["activeServiceStatus"]["applicationStatuses"]
    serving.cluster.wait(lambda: statuses if MODEL not in statuses else None)


def test_what_is_served_outlives_an_upgrade_and_a_rollback(
    serving: Serving, versions: tuple[ModelVersionRef, ...]
) -> None:
    with serving.account("semr-evolution"):
        RayServeTarget(serving.settings).deploy(versions[1], timeout_seconds=150)
    keep = ("--reset-then-reuse-values", "--set=mlflow.workers=3")
    serving.cluster.install("SEMR", RELEASE, serving.namespace, *keep, verb="upgrade")
    assert serving.applications == [standby.NAME, MODEL]
    done = serving.cluster.helm_run("rollback", RELEASE, "1", namespace=serving.namespace)
    assert done.returncode == 0, done.stderr
    assert serving.applications == [standby.NAME, MODEL]
    assert RayServeTarget(serving.settings).current(MODEL) == versions[1].version


def test_a_version_that_cannot_be_loaded_is_taken_back(serving: Serving, versions: tuple[ModelVersionRef, ...]) -> None:
    target = RayServeTarget(serving.settings)
    with serving.account("semr-evolution"):
        target.deploy(versions[0], timeout_seconds=150)
        with pytest.raises(DeploymentError, match="is not served"):
            target.deploy(versions[2], timeout_seconds=150)
        serving.cluster.wait(lambda: target.current(MODEL) != versions[0].version)
    config = yaml.safe_load(serving.service["spec"]["serveConfigV2"])
    (application,) = [each for each in config["applications"] if each["name"] == MODEL]
    assert application["deployments"][0]["user_config"] == {"version": versions[0].version}


def test_a_removed_model_leaves_the_others(serving: Serving, versions: tuple[ModelVersionRef, ...]) -> None:
    with serving.account("semr-evolution"):
        RayServeTarget(serving.settings).remove(MODEL)
    assert serving.applications == [standby.NAME]
    assert serving.is_ready()


def test_an_account_without_rights_is_refused_in_words(serving: Serving, versions: tuple[ModelVersionRef, ...]) -> None:
    with serving.account("semr-mlflow"), pytest.raises(DeploymentError, match=r"refused RayService.*403"):
        RayServiceApplications(str(serving.settings.ray_service)).put(MODEL, {"name": MODEL})
