"""The deployment targets helm and RayService: what they ask for, and what they make of refusals."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from semr.deployment import ray_service, standby
from semr.deployment.choice import deployment_target
from semr.deployment.helm import HelmTarget, inference_chart, release_name
from semr.deployment.ray_serve import RayServeTarget
from semr.deployment.ray_service import KubernetesApi, RayServiceApplications
from semr.deployment.target import DeploymentError
from semr.errors import DependencyUnavailableError, InvalidInputError, SettingsError
from semr.registry import ModelVersionRef
from semr.settings import Settings

SETTINGS = Settings(mlflow_uri="http://mlflow:5000", _env_file=None)  # type: ignore[call-arg]


def ref(version: str = "8", name: str = "mnist") -> ModelVersionRef:
    return ModelVersionRef(name=name, version=version, run_id="r", uri=f"models:/{name}/{version}", metrics={})


class FakeHelm:
    """A helm that writes down what it is asked and answers as told."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "calls"
        self.program = folder / "helm"
        self.answer("echo v4.1.4")

    def answer(self, body: str) -> None:
        self.program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >>{self.log}\n{body}\n')
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def helm(tmp_path: Path) -> FakeHelm:
    return FakeHelm(tmp_path)


def target(helm: FakeHelm) -> HelmTarget:
    return HelmTarget(SETTINGS, namespace="ml", program=str(helm.program))


def test_deploying_is_an_upgrade_that_waits_and_takes_itself_back(helm: FakeHelm) -> None:
    assert target(helm).deploy(ref(), replicas=2, timeout_seconds=90) == "http://inference-mnist.ml.svc:8080"
    version, upgrade = helm.calls
    assert version.startswith("version")
    words = upgrade.split()
    assert words[:3] == ["upgrade", "inference-mnist", str(inference_chart())]
    for word in (
        "--install", "--reset-then-reuse-values", "--wait", "--timeout=90s", "--history-max=10", "--rollback-on-failure",
        "--server-side=true", "--force-conflicts",
        "--set-string=model.name=mnist", "--set-string=model.version=8", "--set=replicas=2",
        "--set-string=mlflow.url=http://mlflow:5000", "--namespace=ml",
    ):  # fmt: skip
        assert word in words, word


def test_helm_3_says_atomic(helm: FakeHelm) -> None:
    helm.answer("echo v3.22.0")
    target(helm).deploy(ref())
    assert "--atomic" in helm.calls[1] and "--rollback-on-failure" not in helm.calls[1]
    assert "--force-conflicts" not in helm.calls[1]
    assert "replicas" not in helm.calls[1], "without a number the release keeps its own"


def test_a_refused_upgrade_is_an_error_with_helm_s_words(helm: FakeHelm) -> None:
    helm.answer('[[ $1 == version ]] && { echo v4.1.4; exit; }\necho "Error: context deadline exceeded" >&2\nexit 1')
    with pytest.raises(DeploymentError, match=r"models:/mnist/8 is not served.*context deadline exceeded"):
        target(helm).deploy(ref())


def test_current_version(helm: FakeHelm) -> None:
    helm.answer("""echo '{"model": {"name": "mnist", "version": 7}}'""")
    assert target(helm).current("mnist") == "7"
    helm.answer('echo "Error: release: not found" >&2; exit 1')
    assert target(helm).current("mnist") is None
    helm.answer('echo "Error: Kubernetes cluster unreachable" >&2; exit 1')
    with pytest.raises(DependencyUnavailableError, match="unreachable"):
        target(helm).current("mnist")


def test_removing_and_rolling_back(helm: FakeHelm) -> None:
    target(helm).remove("mnist")
    target(helm).roll_back("mnist", 60)
    assert helm.calls[0].startswith("uninstall inference-mnist --ignore-not-found --wait")
    assert helm.calls[2].startswith(
        "rollback inference-mnist --wait --timeout=60s --server-side=true --force-conflicts"
    )


def test_without_helm_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="not on PATH"):
        HelmTarget(SETTINGS, program=str(tmp_path / "none")).deploy(ref())


@pytest.mark.parametrize(("model", "release"), [("mnist", "inference-mnist"), ("QoE_cell", "inference-qoe-cell")])
def test_release_names(model: str, release: str) -> None:
    assert release_name(model) == release


@pytest.mark.parametrize("model", ["", "a b", "-a", "ä", "x" * 60])
def test_names_that_kubernetes_does_not_take(model: str) -> None:
    with pytest.raises(InvalidInputError, match="cannot be served by the target helm"):
        release_name(model)


def test_a_policy_chooses_before_the_contract() -> None:
    assert isinstance(deployment_target(SETTINGS, "helm"), HelmTarget)
    with pytest.raises(InvalidInputError, match="name ray_serve or helm"):
        deployment_target(SETTINGS, "kserve")


def test_the_contract_chooses() -> None:
    assert isinstance(deployment_target(SETTINGS), RayServeTarget)
    assert isinstance(deployment_target(Settings(deployment_target="helm", _env_file=None)), HelmTarget)  # type: ignore[call-arg]


class FakeKubernetes:
    """The API for one RayService; `conflicts` refuses that many patches, `broken` answers 503, `absent` 404 that often."""

    def __init__(self) -> None:
        config = yaml.safe_dump({"applications": [{"name": "semr-standby"}], "http_options": {"port": 8000}})
        self.object: dict[str, Any] = {"metadata": {"resourceVersion": "1"}, "spec": {"serveConfigV2": config}}
        self.conflicts = self.broken = self.absent = 0
        self.patches: list[dict[str, Any]] = []
        self.seen: list[tuple[str, str, str | None]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.seen.append(("GET", self.path, self.headers.get("Authorization")))
                if fake.broken:
                    fake.broken -= 1
                    self.reply(503, {"message": "etcd is away"})
                elif fake.absent:
                    fake.absent -= 1
                    self.reply(404, {"message": "not found"})
                else:
                    self.reply(200, fake.object)

            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Content-Type"] == "application/merge-patch+json"
                if fake.conflicts or body["metadata"]["resourceVersion"] != fake.object["metadata"]["resourceVersion"]:
                    fake.conflicts -= 1
                    self.reply(409, {"message": "the object has been modified"})
                    return
                fake.patches.append(body)
                fake.object["spec"] |= body["spec"]
                fake.object["metadata"]["resourceVersion"] = str(len(fake.patches) + 1)
                self.reply(200, fake.object)

            def reply(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def applications(self) -> list[str]:
        return [each["name"] for each in yaml.safe_load(self.object["spec"]["serveConfigV2"])["applications"]]


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    monkeypatch.setattr(ray_service.time, "sleep", lambda _: None)
    made = FakeKubernetes()
    yield made
    made.server.shutdown()


def applications(kubernetes: FakeKubernetes, token: Path | None = None) -> RayServiceApplications:
    return RayServiceApplications(
        "ml/serving", KubernetesApi(f"http://127.0.0.1:{kubernetes.server.server_port}", token)
    )


def test_an_application_is_added_beside_the_others(kubernetes: FakeKubernetes, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    applications(kubernetes, token).put("mnist", {"name": "mnist", "route_prefix": "/mnist"})
    assert kubernetes.applications == ["semr-standby", "mnist"]
    assert yaml.safe_load(kubernetes.object["spec"]["serveConfigV2"])["http_options"] == {"port": 8000}
    assert kubernetes.seen[0] == ("GET", "/apis/ray.io/v1/namespaces/ml/rayservices/serving", "Bearer secret")


def test_the_same_again_changes_nothing(kubernetes: FakeKubernetes) -> None:
    for _ in range(2):
        applications(kubernetes).put("mnist", {"name": "mnist"})
    assert len(kubernetes.patches) == 1


def test_an_application_is_replaced_and_removed(kubernetes: FakeKubernetes) -> None:
    applications(kubernetes).put("mnist", {"name": "mnist", "args": {"v": 1}})
    applications(kubernetes).put("mnist", {"name": "mnist", "args": {"v": 2}})
    assert kubernetes.applications == ["semr-standby", "mnist"]
    applications(kubernetes).put("mnist", None)
    assert kubernetes.applications == ["semr-standby"]


def test_a_faster_deployer_is_waited_for(kubernetes: FakeKubernetes) -> None:
    kubernetes.conflicts = 3
    applications(kubernetes).put("mnist", {"name": "mnist"})
    assert kubernetes.applications == ["semr-standby", "mnist"]
    kubernetes.conflicts = 99
    with pytest.raises(DeploymentError, match="could not be changed: 409"):
        applications(kubernetes).put("other", {"name": "other"})


def test_a_new_ray_service_gets_its_first_application(kubernetes: FakeKubernetes) -> None:
    del kubernetes.object["spec"]["serveConfigV2"]
    standby.put_standby(applications(kubernetes))
    assert yaml.safe_load(kubernetes.object["spec"]["serveConfigV2"]) == {"applications": [standby.APPLICATION]}


def test_the_first_application_waits_for_its_ray_service(kubernetes: FakeKubernetes) -> None:
    kubernetes.absent = 3
    standby.put_standby(applications(kubernetes))
    assert kubernetes.applications == ["semr-standby"]
    kubernetes.absent = 10**6
    with pytest.raises(DeploymentError, match="404"):
        standby.put_standby(applications(kubernetes), wait_seconds=0.05)


def test_outside_a_cluster_the_job_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(standby, "get_settings", lambda: Settings(ray_service="ml/serving", _env_file=None))  # type: ignore[call-arg]
    assert standby.main() == 2
    assert "from inside its cluster" in capsys.readouterr().err


def test_a_short_outage_is_borne_and_a_long_one_named(kubernetes: FakeKubernetes) -> None:
    kubernetes.broken = 2
    applications(kubernetes).put("mnist", {"name": "mnist"})
    kubernetes.broken = 99
    with pytest.raises(DependencyUnavailableError, match=r"Kubernetes API.*etcd is away"):
        applications(kubernetes).put("mnist", None)


def test_outside_a_pod_the_error_tells_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingsError, match="from inside its cluster"):
        RayServiceApplications("ml/serving")
