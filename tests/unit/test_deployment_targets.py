"""The deployment targets helm and RayService: what they ask for, and what they make of refusals."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
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


NOT_FOUND = 'echo "Error: release: not found" >&2; exit 1'


def status(state: str, changed: float | None = None, values: dict[str, Any] | None = None) -> str:
    """What `helm status` prints of a release, with Go's nine digits after the point."""
    moment = datetime.fromtimestamp(time.time() if changed is None else changed, timezone.utc)
    info = {"status": state, "last_deployed": moment.strftime("%Y-%m-%dT%H:%M:%S.123456789Z")}
    return f"echo '{json.dumps({'info': info, 'config': values or {}})}'"


class FakeHelm:
    """A helm that writes down what it is asked and answers as told, by default of a release that is deployed."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "calls"
        self.given = folder / "given"
        self.program = folder / "helm"
        self.bodies = {"version": "echo v4.1.4", "status": status("deployed"), "upgrade": f"cat >{self.given}"}
        self.answer()

    def answer(self, **bodies: str) -> None:
        """Shell code for subcommands, over what they answer else."""
        self.bodies |= bodies
        cases = "\n".join(f"{name})\n{body}\n;;" for name, body in self.bodies.items())
        self.program.write_text(f'#!/bin/bash\nprintf "%s\n" "$*" >>{self.log}\ncase $1 in\n{cases}\nesac\n')
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    def calls(self, *names: str) -> list[str]:
        """Those of the subcommands, all without."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if not names or line.split()[0] in names]


@pytest.fixture
def helm(tmp_path: Path) -> FakeHelm:
    return FakeHelm(tmp_path)


def target(helm: FakeHelm, **settings: str) -> HelmTarget:
    return HelmTarget(SETTINGS.model_copy(update=settings), namespace="ml", program=str(helm.program))


@pytest.mark.parametrize("there", [status("deployed"), NOT_FOUND], ids=["there", "first"])
def test_deploying_is_an_upgrade_that_waits_and_takes_itself_back(helm: FakeHelm, there: str) -> None:
    helm.answer(status=there)
    assert target(helm).deploy(ref(), replicas=2, timeout_seconds=90) == "http://inference-mnist.ml.svc:8080"
    (upgrade,) = helm.calls("upgrade")
    words = upgrade.split()
    assert words[:3] == ["upgrade", "inference-mnist", str(inference_chart())]
    for word in (
        "--install", "--reset-then-reuse-values", "--wait", "--timeout=90s", "--history-max=10", "--rollback-on-failure",
        "--server-side=true", "--force-conflicts",
        "--set-string=model.name=mnist", "--set-string=model.version=8", "--set=replicas=2",
        "--set-string=mlflow.url=http://mlflow:5000", "--namespace=ml",
        # Else a release that served an alias would have both, which the chart refuses.
        "--set-string=model.alias=", "--set=model.follow=false",
    ):  # fmt: skip
        assert word in words, word
    assert "canary" not in upgrade and helm.given.read_text() == "{}"


def test_every_release_has_the_values_of_the_contract(helm: FakeHelm) -> None:
    target(helm, helm_values='{"contract": {"configMap": "c"}}').deploy(ref())
    assert "--values=-" in helm.calls("upgrade")[0]
    assert helm.given.read_text() == '{"contract": {"configMap": "c"}}'


def test_helm_3_says_atomic(helm: FakeHelm) -> None:
    helm.answer(version="echo v3.22.0")
    target(helm).deploy(ref())
    (upgrade,) = helm.calls("upgrade")
    assert "--atomic" in upgrade and "--rollback-on-failure" not in upgrade
    assert "--force-conflicts" not in upgrade
    assert "replicas" not in upgrade, "without a number the release keeps its own"


def test_a_refused_upgrade_is_an_error_with_helm_s_words(helm: FakeHelm) -> None:
    helm.answer(upgrade='echo "Error: context deadline exceeded" >&2\nexit 1')
    with pytest.raises(DeploymentError, match=r"models:/mnist/8 is not served.*context deadline exceeded"):
        target(helm).deploy(ref())


@pytest.mark.parametrize(("version", "ended"), [("8", True), ("7", False)])
def test_a_canary_that_is_promoted_is_a_canary_no_more(helm: FakeHelm, version: str, ended: bool) -> None:
    helm.answer(status=status("deployed", values={"canary": {"enabled": True, "version": int(version)}}))
    target(helm).deploy(ref())
    assert ("--set=canary.enabled=false" in helm.calls("upgrade")[0]) is ended


LONG_AGO = 1_700_000_000.0


def test_another_helm_at_work_is_waited_for(helm: FakeHelm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semr.deployment.helm._POLL_SECONDS", 0.01)
    seen = tmp_path / "seen"
    busy, free = status("pending-upgrade"), status("deployed")
    helm.answer(status=f"echo >>{seen}; if (( $(wc -l <{seen}) < 3 )); then {busy}; else {free}; fi")
    target(helm).deploy(ref())
    assert len(helm.calls("status")) == 3 and helm.calls("upgrade") and not helm.calls("rollback", "uninstall")


@pytest.mark.parametrize(
    ("state", "history", "repair"),
    [
        ("pending-upgrade", ["superseded", "deployed", "pending-upgrade"], "rollback inference-mnist 2"),
        ("pending-rollback", ["superseded", "deployed", "failed", "pending-rollback"], "rollback inference-mnist 2"),
        ("pending-install", ["pending-install"], "uninstall inference-mnist"),
        ("uninstalling", ["superseded", "uninstalling"], "uninstall inference-mnist"),
    ],
)
def test_the_lock_of_a_helm_that_was_killed_is_taken_away(
    helm: FakeHelm, state: str, history: list[str], repair: str
) -> None:
    revisions = [{"revision": number, "status": each} for number, each in enumerate(history, 1)]
    helm.answer(status=status(state, LONG_AGO), history=f"echo '{json.dumps(revisions)}'")
    target(helm).deploy(ref())
    changes = helm.calls("rollback", "uninstall", "upgrade")
    assert changes[0].startswith(repair) and changes[1].startswith("upgrade") and len(changes) == 2


def test_a_lock_that_cannot_be_taken_away_is_named(helm: FakeHelm) -> None:
    helm.answer(status=status("pending-upgrade", LONG_AGO), history="echo '[]'", uninstall="echo no rights >&2; exit 1")
    with pytest.raises(DeploymentError, match=r"left locked by a helm that was killed.*no rights"):
        target(helm).deploy(ref())
    assert not helm.calls("upgrade")


def test_what_is_served_stays_when_its_history_cannot_be_read(helm: FakeHelm) -> None:
    """Not knowing what was deployed is not knowing that nothing was."""
    helm.answer(
        status=status("pending-upgrade", LONG_AGO), history='echo "Error: Kubernetes cluster unreachable" >&2; exit 1'
    )
    with pytest.raises(DependencyUnavailableError, match="unreachable"):
        target(helm).deploy(ref())
    assert not helm.calls("rollback", "uninstall", "upgrade")


def test_a_release_that_others_keep_busy_is_left_alone(
    helm: FakeHelm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look finds another change: that is no dead helm."""
    monkeypatch.setattr("semr.deployment.helm._POLL_SECONDS", 0.01)
    monkeypatch.setattr(HelmTarget, "_longest", lambda *_: 0.5)
    moment = 'date -u +"%Y-%m-%dT%H:%M:%S.%NZ"'
    helm.answer(status=f"""printf '{{"info": {{"status": "pending-upgrade", "last_deployed": "%s"}}}}' $({moment})""")
    with pytest.raises(DeploymentError, match="pending-upgrade by another helm, again and again"):
        target(helm).deploy(ref(), timeout_seconds=1)
    assert not helm.calls("rollback", "uninstall", "upgrade")


def test_a_cluster_that_does_not_answer_is_named(helm: FakeHelm) -> None:
    helm.answer(status='echo "Error: Kubernetes cluster unreachable" >&2; exit 1')
    with pytest.raises(DependencyUnavailableError, match="unreachable"):
        target(helm).deploy(ref())


def test_current_version(helm: FakeHelm) -> None:
    helm.answer(get="""echo '{"model": {"name": "mnist", "version": 7}}'""")
    assert target(helm).current("mnist") == "7"
    helm.answer(get=NOT_FOUND)
    assert target(helm).current("mnist") is None
    helm.answer(get='echo "Error: Kubernetes cluster unreachable" >&2; exit 1')
    with pytest.raises(DependencyUnavailableError, match="unreachable"):
        target(helm).current("mnist")


def test_removing_and_rolling_back(helm: FakeHelm) -> None:
    target(helm).remove("mnist")
    target(helm).roll_back("mnist", 60)
    assert helm.calls()[0].startswith("uninstall inference-mnist --ignore-not-found --wait")
    assert helm.calls()[2].startswith(
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
