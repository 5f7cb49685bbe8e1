"""A served model as the chart semr-inference runs it, with the values that the chart SEMR gives such releases.

It loads from MLflow with its own password, and records into the object store what the next training learns from.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pytest
from chart_tools import Helm, Rendered
from data_plane import DataPlane, Start, until
from mlflow.models import infer_signature

from semr import tracking
from semr.inference.client import InferenceClient
from semr.registry import Registry

OWNER, MODEL = "Deployment/inference-doubler", "doubler"
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)
DOUBLER = """
import mlflow
from mlflow.models import set_model

class Doubler(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input * 2

set_model(Doubler())
"""


@dataclass
class Served:
    """The data plane and a release in it."""

    plane: DataPlane
    version: str

    @property
    def url(self) -> str:
        return self.plane.node.url(8080)


@pytest.fixture(scope="module")
def served(helm: Helm, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With an MLflow that asks for a password."""
    folder = tmp_path_factory.mktemp("model")
    installed = helm.render("SEMR", None, "contract.deploymentTarget=helm", "mlflow.auth.enabled=true")
    release = helm.model_release(installed.get("ConfigMap", "semr-contract")["data"], MODEL, folder)
    both = Rendered((*installed.objects, *release.objects))
    with start(both) as plane, pytest.MonkeyPatch.context() as patch:
        plane.set_up()
        plane.serve("Deployment/semr-mlflow")
        account = plane.node.data("Secret", "semr-mlflow-auth")
        patch.setenv("MLFLOW_TRACKING_USERNAME", account["username"])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", account["password"])
        version = _register(plane, folder)
        plane.serve(OWNER)
        yield Served(plane, version)


def _register(plane: DataPlane, folder: Path) -> str:
    (folder / "doubler.py").write_text(DOUBLER)
    settings = plane.settings()
    tracking.connect(settings)
    with mlflow.start_run() as run:
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(folder / "doubler.py"),
            signature=infer_signature(ROWS, ROWS),
            pip_requirements=["mlflow"],
        )
    return Registry(settings).register(run.info.run_id, MODEL).version


def test_it_answers_with_its_version(served: Served) -> None:
    with InferenceClient(served.url, MODEL) as client:
        said = client.infer({"input-0": ROWS})
    assert said.version == served.version == "1"
    assert np.array_equal(next(iter(said.outputs.values())), ROWS * 2)


def test_what_it_is_asked_is_kept_for_the_next_training(served: Served) -> None:
    """In the bucket of the contract, with the contract's own account."""
    with InferenceClient(served.url, MODEL) as client:
        client.infer({"input-0": ROWS})
    store = served.plane.s3_of("semr")

    def recorded() -> list[str]:
        found = store.list_objects_v2(Bucket="semr-datasets", Prefix=f"{MODEL}-live/").get("Contents", [])
        return [each["Key"] for each in found]

    assert all(key.endswith(".parquet") for key in until("a recording", recorded))


def test_metrics_are_where_the_service_monitor_looks(served: Served) -> None:
    monitor = served.plane.node.rendered.get("ServiceMonitor", f"inference-{MODEL}")
    (endpoint,) = monitor["spec"]["endpoints"]
    text = httpx.get(served.url + endpoint.get("path", "/metrics"), trust_env=False).text
    assert re.search(rf'^semr_inference_requests_total\{{.*model="{MODEL}".*version="1".*\}} [1-9]', text, re.MULTILINE)


def test_nothing_secret_is_told(served: Served) -> None:
    node = served.plane.node
    secrets = [*node.data("Secret", "semr-contract").values(), node.data("Secret", "semr-mlflow-auth")["password"]]
    assert not [each for each in secrets if each in served.plane.servers[OWNER].output]


def test_it_comes_back_after_kill_9_and_ends_when_told(served: Served) -> None:
    served.plane.kill(OWNER)
    running = served.plane.serve(OWNER)
    with InferenceClient(served.url, MODEL) as client:
        assert client.infer({"input-0": ROWS}).version == "1"
    running.process.send_signal(signal.SIGTERM)
    running.wait(40)
