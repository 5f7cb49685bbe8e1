"""Workflows on a real Flyte: registered, run task by task in pods, launched by what the evolution service launches with.

Flyte (with its charts' real configuration and the rights of its own ServiceAccount), PostgreSQL, API server, object store,
MLflow and Ray are real; a task's container is a process of this machine (`task_kubelet`). Needs Flyte's own binary and the
charts of others, which no package registry has: SEMR_TEST_FLYTE and SEMR_TEST_CHART_DEPENDENCIES name them.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from chart_tools import CASES, ROOT, Helm, Rendered, copy_with_dependencies
from cluster_tools import Cluster, existing_kubeconfig
from data_plane import DataPlane, server_programs
from flyte_backend import FlyteBackend, FlyteError, config_maps, find_flyte, running_flyte, validate
from pod_runner import running_node, why_not
from stack_tools import own_contract, require_programs
from task_kubelet import TaskKubelet

from semr.deployment.ray_serve import RayServeTarget
from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.evolution.flyte_launcher import FlyteLauncher
from semr.evolution.launch import Launch, State, Trigger
from semr.evolution.launcher import Progress, Sight
from semr.registry import CHAMPION, Registry
from semr.settings import Settings
from semr.stack import control
from workflow_examples.mnist.traffic import Pool, Traffic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
RELEASE, MODEL = "semr", "mnist"
IMAGE = "ghcr.io/semr/semr-flyte-task:0.1.0"
PLAN = "workflow_examples.mnist.wf_evolution.mnist_retrain"


def flyte_configs(rendered: Rendered) -> list[str]:
    """The files of configuration of Flyte's pod, in the order of their names."""
    files = {
        file: text
        for each in rendered.of("ConfigMap")
        if each["metadata"]["name"] in config_maps(RELEASE)
        for file, text in each["data"].items()
    }
    return [files[file] for file in sorted(files)]


@dataclass
class Site:
    """A release of SEMR whose Flyte runs and whose other servers are those of an embedded stack.

    Attributes:
        settings: the contract as this process has it, with Flyte in it.
        environment: of `pyflyte` and `semr`.
    """

    cluster: Cluster
    namespace: str
    flyte: FlyteBackend
    kubelet: TaskKubelet
    settings: Settings
    environment: dict[str, str]

    def run(self, *command: str, seconds: float = 600) -> str:
        """What a command of this environment prints, run in the checkout."""
        program = str(Path(sys.executable).parent / command[0])
        done = subprocess.run(
            [program, *command[1:]], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}{self.what_happened()}"
        return done.stdout + done.stderr

    def what_happened(self) -> str:
        return f"\nTASKS: {self.kubelet.logs()}\nFLYTE: {self.flyte.log.read_text(errors='replace')[-4000:]}"


@pytest.fixture(scope="module")
def database(
    helm: Helm, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[DataPlane]:
    """The chart's PostgreSQL, with Flyte's database and user."""
    if reason := why_not():
        pytest.skip(f"pods cannot be run as processes: {reason}")
    try:
        folders = server_programs(request.getfixturevalue("bed").programs)
    except FileNotFoundError as error:
        pytest.skip(f"no PostgreSQL: {error}")
    with running_node(helm.render("SEMR"), tmp_path_factory.mktemp("node"), folders) as node:
        plane = DataPlane(node)
        job = node.start(plane.pod("Job/semr-postgresql-setup"))
        plane.serve("StatefulSet/semr-postgresql")
        job.wait()
        yield plane


@pytest.fixture(scope="module")
def program() -> Path:
    """Flyte's binary."""
    try:
        return find_flyte()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def real_charts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our charts, with those of others."""
    try:
        return copy_with_dependencies(tmp_path_factory.mktemp("real") / "helm_charts")
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_flyte_knows_every_setting(program: Path, real_charts: Path, helm: Helm, tmp_path: Path) -> None:
    with_flyte = set()
    real = Helm(helm.program, real_charts)
    for profile in [profile for chart, profile in CASES if chart == "SEMR"]:
        if configs := flyte_configs(real.render("SEMR", profile)):
            assert "Validated config file successfully" in validate(program, configs, tmp_path / str(profile)), profile
            with_flyte.add(profile)
    assert with_flyte == {None, "everything-on-values", "ha-values", "values_example"}
    configs = flyte_configs(real.render("SEMR"))
    wrong = [text.replace("task_resources", "task_resource") for text in configs]
    assert wrong != configs
    with pytest.raises(FlyteError, match="task_resource"):
        validate(program, wrong, tmp_path / "wrong")


@pytest.fixture(scope="module")
def site(
    program: Path,
    real_charts: Path,
    cluster: Cluster,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """SEMR in a namespace that enforces Pod Security, with everything outside but Flyte."""
    if existing_kubeconfig() is not None:
        pytest.skip("tasks are run for the pods of this run's own test bed only")
    require_programs()
    database: DataPlane = request.getfixturevalue("database")
    cluster = dataclasses.replace(cluster, helm=Helm(cluster.helm.program, real_charts))
    base = Path(tempfile.mkdtemp(prefix="semr-test-"))
    reused = os.environ.get("SEMR_TEST_STACK")
    folder = Path(reused) if reused else base / ".semr"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    try:
        with own_contract() as point_at, cluster.namespace("flyte", labels) as name:
            settings = control.up(folder)
            point_at(folder)
            password = database.node.data("Secret", "semr-postgresql")["flyte-password"]
            _prepare(cluster, name, settings, password)
            values = base / "values.yaml"
            values.write_text(yaml.safe_dump(_values(settings, database.node.port(5432))))
            cluster.install("SEMR", RELEASE, name, "--values", values)
            flyte_folder = tmp_path_factory.mktemp("flyte")
            with (
                running_flyte(program, cluster, name, RELEASE, flyte_folder, password) as flyte,
                TaskKubelet(cluster, name, tmp_path_factory.mktemp("tasks")) as kubelet,
            ):
                config = base / "flyte.yaml"
                config.write_text(yaml.safe_dump({"admin": {"endpoint": f"dns:///{flyte.grpc}", "insecure": True}}))
                here = settings.model_copy(update={"flyte_endpoint": flyte.grpc})
                kept = {key: value for key, value in os.environ.items() if not key.startswith("SEMR_")}
                contract = {**here.contract(), **here.client_environment(), "FLYTECTL_CONFIG": str(config)}
                yield Site(cluster, name, flyte, kubelet, here, {**kept, **contract})
    finally:
        if not reused:
            control.down(folder)
        shutil.rmtree(base, ignore_errors=True)


def _prepare(cluster: Cluster, namespace: str, settings: Settings, password: str) -> None:
    """What an administrator makes: the Secrets of the external servers, and Flyte's bucket."""
    key, secret = settings.need("object_store_access_key"), settings.need("object_store_secret_key")
    secrets = {
        "semr-credentials": {
            name: value for name, value in settings.contract().items() if name in Settings.secret_variables()
        },
        "semr-s3": {"flyte-access-key": key, "flyte-secret-key": secret},
        "semr-database": {"flyte-password": password},
    }
    for name, data in secrets.items():
        each = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
        cluster.apply(each, namespace=namespace)
    store = boto3.client(
        "s3", endpoint_url=settings.need("object_store_endpoint"), aws_access_key_id=key, aws_secret_access_key=secret,
        region_name=settings.object_store_region,
    )  # fmt: skip
    if "semr-flyte" not in [each["Name"] for each in store.list_buckets()["Buckets"]]:
        store.create_bucket(Bucket="semr-flyte")


def _values(settings: Settings, port: int) -> dict[str, Any]:
    """As ci/external-services-values.yaml, but with Flyte inside."""
    off = {"enabled": False}
    deployment = {
        "extraEnvVars": [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": "semr-s3", "key": key}}}
            for name, key in (("AWS_ACCESS_KEY_ID", "flyte-access-key"), ("AWS_SECRET_ACCESS_KEY", "flyte-secret-key"))
        ],
        "extraVolumes": [
            {
                "name": "semr-database",
                "secret": {"secretName": "semr-database", "items": [{"key": "flyte-password", "path": "password"}]},
            }
        ],
    }
    return {
        "contract": {"existingSecret": "semr-credentials"},
        "postgresql": {
            **off,
            "external": {"host": "127.0.0.1", "port": port, "sslMode": "disable"},
            "auth": {"existingSecret": "semr-database"},
        },
        "minio": {
            **off,
            "external": {"endpoint": settings.need("object_store_endpoint")},
            "auth": {"existingSecret": "semr-s3"},
        },
        "mlflow": {**off, "external": {"url": settings.need("mlflow_uri")}},
        "ray": {
            "external": {"dashboardUrl": settings.need("ray_dashboard_url"), "serveUrl": settings.need("serve_url")},
            "jobs": off,
            "serving": off,
        },
        "evolution": {**off, "external": {"url": settings.need("evolution_url")}},
        "monitoring": {**off, "external": {"prometheusUrl": settings.need("prometheus_url")}},
        "kuberay-operator": off,
        "kube-prometheus-stack": off,
        "flyte-binary": {
            "configuration": {"database": {"host": "127.0.0.1", "port": port}},
            "deployment": deployment,
        },
    }


@pytest.fixture(scope="module")
def registered(site: Site) -> str:
    """The version under which the workflows are registered, as the README does it."""
    version = uuid.uuid4().hex[:8]
    where = ("--project", "flytesnacks", "--domain", "development", "--image", IMAGE, "--version", version)
    said = site.run("pyflyte", "register", *where, "workflow_examples")
    assert PLAN in said
    return version


@pytest.fixture(scope="module")
def trained(site: Site, registered: str) -> str:
    """`mnist_train` as the README runs it, until it has a champion; what pyflyte printed."""
    return site.run(
        "pyflyte", "run", "--remote", "--wait", "--image", IMAGE, "workflow_examples/mnist/wf.py", "mnist_train",
        "--epochs", "8", "--workers", "1", seconds=900,
    )  # fmt: skip


def test_seven_tasks_make_a_champion(site: Site, trained: str) -> None:
    champion = Registry(site.settings).find(MODEL, CHAMPION)
    assert champion is not None, site.what_happened()
    assert len(site.kubelet.ran) == 7 and {each.code for each in site.kubelet.ran.values()} == {0}
    assert re.search(r"http://\S+/console/projects/flytesnacks", trained), trained


def test_pods_of_tasks_are_made_from_the_template(site: Site, trained: str) -> None:
    template = site.cluster.get("podtemplate", f"{RELEASE}-tasks", site.namespace)
    assert template is not None
    wanted = template["template"]
    for ran in site.kubelet.ran.values():
        metadata, spec = ran.pod["metadata"], ran.pod["spec"]
        assert wanted["metadata"]["labels"].items() <= metadata["labels"].items()
        assert spec["serviceAccountName"] == f"{RELEASE}-tasks"
        (container,) = spec["containers"]
        assert container["image"] == IMAGE and container["envFrom"] == wanted["spec"]["containers"][0]["envFrom"]
        # Flyte puts what it has from its configuration behind what it has from the template.
        assert set(container["securityContext"]["capabilities"]["drop"]) == {"ALL"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"] == {
            "requests": {"cpu": "500m", "memory": "1Gi"},
            "limits": {"cpu": "500m", "memory": "1Gi"},
        }


def make_launch(version: str | None, **inputs: Any) -> Launch:
    trigger = Trigger("human", "a test", time.time())
    identity = f"f{uuid.uuid4().hex[:19]}"
    given = {"model_name": MODEL, "launch_id": identity, "trigger": trigger.to_json(), **inputs}
    plan = {"flyte": {"launch_plan": PLAN, "version": version}, "max_run_seconds": 600}
    return Launch(
        id=identity, model=MODEL, action="retrain", state=State.LAUNCHING, plan=plan, inputs=given, trigger=trigger,
        version=None, created=time.time(), started=None, finished=None, attempts=1, pid=None, detail="", outcome=None,
    )  # fmt: skip


def ended(launcher: FlyteLauncher, launch: Launch, site: Site, seconds: float = 600) -> Progress:
    """The progress of a launch when it has ended."""
    deadline = time.monotonic() + seconds
    while (progress := launcher.look(launch)).sight is Sight.RUNNING:
        assert time.monotonic() < deadline, site.what_happened()
        time.sleep(1)
    return progress


def test_the_evolution_service_s_launcher_retrains(site: Site, registered: str, trained: str) -> None:
    """Twice started is once launched; the outcome of the workflow comes back."""
    launcher = FlyteLauncher(site.settings)
    launch = make_launch(
        registered, least_rows=150, window_seconds=600.0, epochs=2, workers=1, verification_seconds=10.0,
        verification_least_requests=20,
    )  # fmt: skip
    with Traffic(RayServeTarget(site.settings).url(MODEL), MODEL, 10.0, Pool.of_split("train"), rows=5):
        time.sleep(20)
        launcher.start(launch)
        launcher.start(launch)
        assert launcher.look(launch).sight is Sight.RUNNING
        progress = ended(launcher, launch, site)
    assert progress.sight is Sight.ENDED and progress.outcome is not None
    assert progress.outcome.verdict in ("promoted", "refused", "rolled_back"), progress.outcome.reason
    assert progress.outcome.challenger_version is not None


def test_a_retraining_that_fails_says_why(site: Site, registered: str, trained: str) -> None:
    launcher = FlyteLauncher(site.settings)
    launch = make_launch(registered, least_rows=1_000_000, window_seconds=1.0)
    launcher.start(launch)
    progress = ended(launcher, launch, site)
    assert progress.outcome is not None and progress.outcome.state is State.FAILED
    said = progress.outcome.reason
    assert re.fullmatch(
        rf"The Flyte execution {launch.id} is FAILED: JobFailedError: job \S+ failed: Only \d+ labelled pictures .*",
        said,
    ), said


def test_a_launch_can_be_ended(site: Site, registered: str, trained: str) -> None:
    launcher = FlyteLauncher(site.settings)
    launch = make_launch(None, least_rows=1)
    launcher.start(launch)
    launcher.stop(launch)
    progress = ended(launcher, launch, site)
    assert progress.outcome is not None and "ABORT" in progress.outcome.reason.upper()


def test_errors_of_a_backend_have_names(site: Site, registered: str) -> None:
    launcher = FlyteLauncher(site.settings)
    unknown = dataclasses.replace(
        make_launch(None), plan={"flyte": {"launch_plan": "nobody.registered.it", "version": None}}
    )
    with pytest.raises(InvalidInputError, match="register it first"):
        launcher.start(unknown)
    assert launcher.look(make_launch(None)).sight is Sight.LOST
    with pytest.raises(InvalidInputError, match="does not accept"):
        launcher.start(make_launch(registered, epochs="many"))
    away = FlyteLauncher(site.settings.model_copy(update={"flyte_endpoint": "127.0.0.1:1"}))
    with pytest.raises(DependencyUnavailableError, match="Flyte"):
        away.look(make_launch(None))
