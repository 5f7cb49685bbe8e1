"""Every image does its work: read-only, as nobody special, against a real stack."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import closing

import httpx
import numpy as np
import pytest
from image_tools import IMAGES, ROOT, Container, container, healthcheck, run_once, sh
from PIL import Image
from stack_tools import RunningStack
from workflow_tools import small_dataset, small_run

from semr import tracking
from semr.inference.client import InferenceClient
from semr.job_entry import config_argument
from semr.jobs import RayJobs
from semr.registry import Registry
from semr.storage import ObjectStore
from workflow_examples.mnist import pipeline
from workflow_examples.mnist.model import to_input
from workflow_examples.mnist.train import TrainConfig

# The first test that needs an image builds it.
pytestmark = pytest.mark.timeout(2400)

GetImage = Callable[[str], str]

# A task of every workflow that has work to do without a Ray job: its file, its name, its inputs, what it says.
TASKS = {
    "mnist/wf.py": ("ingest", {"source": "digits", "limit": "100"}),
    "qoe/wf.py": ("ingest", {"source": "synthetic", "n": "1"}),
    "mnist/wf_evolution.py": ("start", {"model_name": "mnist", "launch_id": "images", "trigger": '{"kind": "human"}'}),
}


@pytest.fixture(scope="session")
def champion(stack: RunningStack) -> str:
    """MNIST, trained in a small way, is champion; returns its version."""
    registry = Registry(stack.settings)
    version = pipeline.register(small_run(), "mnist", small_dataset())
    registry.promote(version)
    return version.version


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return int(taken.getsockname()[1])


def wait_for(running: Container, url: str, seconds: float = 120.0, token: str = "") -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5, headers=headers).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert running.is_running(), running.logs()[-4000:]
        time.sleep(0.3)
    pytest.fail(f"{url} does not answer: {running.logs()[-4000:]}")


def modules(image: str, *names: str) -> dict[str, bool]:
    """Which modules an image has."""
    code = f"import importlib.util as u, json; print(json.dumps({{n: u.find_spec(n) is not None for n in {names!r}}}))"
    return dict(json.loads(run_once(image, "-c", code, options=("--entrypoint=python",))))


@pytest.mark.parametrize("folder", IMAGES)
def test_an_image_carries_the_package_and_its_labels(image: GetImage, folder: str) -> None:
    name = image(folder)
    (found,) = json.loads(sh("podman", "image", "inspect", name))
    labels = found["Labels"]
    assert labels["org.opencontainers.image.title"] == IMAGES[folder]
    code = "import semr, sys; print(semr.__version__, sys.version_info[:2], sys.prefix)"
    version, python = run_once(name, "-c", code, options=("--entrypoint=python",)).split(" ", 1)
    assert version == labels["org.opencontainers.image.version"]
    assert python == "(3, 11) /opt/semr"
    assert run_once(name, "-u", options=("--entrypoint=id",)) == "1000"


def test_versions_in_the_images_are_those_of_the_constraints(image: GetImage) -> None:
    constraints = dict(
        line.split(" ;")[0].split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and "python_full_version < '3.11'" not in line and ">= '3.12'" not in line
    )
    code = (
        "import importlib.metadata as m, json, re;"
        "print(json.dumps({re.sub('[._-]+', '-', d.metadata['Name']).lower(): d.version for d in m.distributions()}))"
    )
    for folder in IMAGES:
        installed = json.loads(run_once(image(folder), "-c", code, options=("--entrypoint=python",)))
        differ = {name: found for name, found in installed.items() if constraints.get(name, found) != found}
        assert not differ
        assert {name for name in installed if name not in constraints} <= {"semr"}


def test_the_inference_server_has_neither_ray_nor_flyte_nor_a_framework(image: GetImage) -> None:
    found = modules(image("model_deployment"), "onnxruntime", "ray", "flytekit", "tensorflow", "torch", "sklearn")
    assert [name for name, there in found.items() if there] == ["onnxruntime"]


def test_model_deployment_serves_the_champion(
    image: GetImage, stack: RunningStack, contract: tuple[str, ...], champion: str
) -> None:
    port = free_port()
    arguments = ("--model=models:/mnist@champion", "--follow", "--host=127.0.0.1", f"--port={port}")
    with container(image("model_deployment"), *arguments, options=(*contract, "--memory=1g")) as server:
        wait_for(server, f"http://127.0.0.1:{port}/v2/health/ready")
        metadata = httpx.get(f"http://127.0.0.1:{port}/v2/models/mnist").json()
        assert (metadata["platform"], metadata["versions"]) == ("onnxruntime", [champion])

        store = ObjectStore.from_settings(stack.settings)
        holdout = store.read(store.dataset("mnist", small_dataset()), "holdout").slice(0, 32)
        images = to_input(holdout["image"].combine_chunks().flatten().to_numpy())
        with InferenceClient(f"http://127.0.0.1:{port}", "mnist") as client:
            answer = client.infer({metadata["inputs"][0]["name"]: images})
        assert answer.version == champion
        (probabilities,) = answer.outputs.values()
        # Two epochs on a few hundred pictures: far better than one in ten.
        assert (probabilities.argmax(axis=1) == holdout["label"].to_numpy()).mean() > 0.5

        # The path that the model brings along, which needs a library of its own.
        picture = io.BytesIO()
        Image.fromarray(np.asarray(holdout["image"][0].as_py(), np.uint8).reshape(28, 28)).save(picture, "PNG")
        path = f"http://127.0.0.1:{port}/v1/models/mnist:predict-image"
        assert httpx.post(path, files={"image": picture.getvalue()}).json()["label"] in range(10)

        exit_code, seconds = server.stop()
        assert exit_code == 0, server.logs()[-2000:]
        assert seconds < 15


def test_the_health_check_of_the_inference_server_tells_ready_from_not(
    image: GetImage, champion: str, contract: tuple[str, ...]
) -> None:
    """The image's own command, at the image's own port."""
    name = image("model_deployment")
    with container(name, "--model=models:/mnist@champion", "--host=127.0.0.1", options=contract) as server:
        check = ["podman", "exec", server.name, *healthcheck(name)]
        assert subprocess.run(check, capture_output=True, check=False).returncode != 0
        wait_for(server, "http://127.0.0.1:8080/v2/health/ready")
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("file", TASKS)
def test_flyte_task_runs_a_task_of_the_workflow(
    image: GetImage, stack: RunningStack, contract: tuple[str, ...], champion: str, file: str
) -> None:
    task, inputs = TASKS[file]
    path = f"/opt/semr/lib/python3.11/site-packages/workflow_examples/{file}"
    options = [part for name, value in inputs.items() for part in (f"--{name}", value)]
    said = run_once(image("flyte_task"), "pyflyte", "run", path, task, *options, options=contract)
    if task == "ingest":
        version = said.split()[-1]
        dataset = f"{file.partition('/')[0]}-raw"
        assert ObjectStore.from_settings(stack.settings).dataset(dataset, version).version == version
    else:
        assert f"models:/mnist/{champion}" in said


def test_flyte_task_has_helm_and_the_chart_of_models(image: GetImage) -> None:
    code = "from semr.deployment.helm import inference_chart; print(inference_chart())"
    chart = run_once(image("flyte_task"), "python", "-c", code)
    rendered = run_once(
        image("flyte_task"), "helm", "template", "m", chart, "--set=model.name=m,model.version=1,mlflow.url=http://m"
    )
    assert "kind: Deployment" in rendered


def test_every_workflow_can_be_imported_where_its_tasks_run(image: GetImage) -> None:
    for path in sorted((ROOT / "workflow_examples").glob("*/wf*.py")):
        module = f"workflow_examples.{path.parent.name}.{path.stem}"
        run_once(image("flyte_task"), "python", "-c", f"import {module}")


def test_evolution_answers_its_health_check_and_stops_cleanly(
    image: GetImage, stack: RunningStack, contract: tuple[str, ...]
) -> None:
    port = free_port()
    policy = ROOT / "workflow_examples" / "mnist" / "policy.yaml"
    # Its data are in the volume that the image declares.
    options = (*contract, f"--volume={policy}:/etc/semr/policy.yaml:ro")
    arguments = ("--policy=/etc/semr/policy.yaml", "--dir=/var/lib/semr", f"--listen=127.0.0.1:{port}")
    with container(image("evolution"), *arguments, options=options) as service:
        wait_for(service, f"http://127.0.0.1:{port}/healthz")
        token = {"Authorization": f"Bearer {stack.settings.need('evolution_token')}"}
        models = httpx.get(f"http://127.0.0.1:{port}/api/v1/models", headers=token)
        assert "mnist" in models.text, models.text
        # The check of the image looks at the port of the image.
        check = [part.replace(":8500", f":{port}") for part in healthcheck(image("evolution"))]
        assert subprocess.run(["podman", "exec", service.name, *check], check=False).returncode == 0
        exit_code, seconds = service.stop()
        assert exit_code == 0 and "Traceback" not in service.logs(), service.logs()[-2000:]
        assert seconds < 20


def test_ray_starts_a_head_as_the_operator_does_and_trains(
    image: GetImage, stack: RunningStack, contract: tuple[str, ...]
) -> None:
    dashboard = free_port()
    names = ("port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    names = (*names, "runtime-env-agent-port", "node-manager-port", "object-manager-port", "ray-client-server-port")
    flags = [f"--{name}={free_port()}" for name in names]
    flags += ["--num-cpus=3", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    # A login shell with a limit on files: what KubeRay puts around `ray start`.
    start = f"ulimit -n 10000; ray start --head --block {' '.join(flags)}"
    options = (*contract, "--tmpfs=/home/semr:rw,mode=1777", "--shm-size=512m", "--memory=6g")
    dataset = small_dataset()
    settings = stack.settings.model_copy(update={"ray_dashboard_url": f"http://127.0.0.1:{dashboard}"})
    with container(image("ray_image"), "/bin/bash", "-lc", "--", start, options=options) as head:
        wait_for(head, f"{settings.ray_dashboard_url}/api/version", 180, settings.need("ray_auth_token"))
        # The operator's probes call it.
        assert head.run("wget", "--version").startswith("GNU Wget")
        config = TrainConfig(dataset, epochs=1, workers=2)
        result = RayJobs(settings).run("workflow_examples.mnist.train", config_argument(config), timeout_seconds=400)
        assert result.run_id is not None
        run = tracking.connect(settings).get_run(result.run_id)
        assert run.info.status == "FINISHED" and run.outputs.model_outputs
