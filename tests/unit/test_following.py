"""The alone host on a real registry: it follows an alias under load, and keeps what it has when the next version is broken."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pytest
from local_servers import mlflow_server
from mlflow.models import infer_signature
from serving import server

from semr import tracking
from semr.inference.client import InferenceClient
from semr.registry import ModelVersionRef, Registry
from semr.settings import Settings

# Each loads a version from the registry; SEMR_TEST_SWITCHES=200 shows more of them.
SWITCHES = int(os.environ.get("SEMR_TEST_SWITCHES", "20"))
RATE = 50.0
ROW = {"input-0": np.zeros((1, 2), np.float32)}
CONSTANT = """
import mlflow, numpy as np
from mlflow.models import set_model

class Constant(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return np.full((len(model_input), 1), {value}, np.float32)

set_model(Constant())
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A registry of its own: MLflow on SQLite."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield Settings(mlflow_uri=url)


def register(settings: Settings, folder: Path, value: str) -> ModelVersionRef:
    """A version that answers with `value`, which is code."""
    code = folder / "constant.py"
    code.write_text(CONSTANT.replace("{value}", value))
    tracking.connect(settings)
    example = ROW["input-0"]
    with mlflow.start_run() as run:
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            signature=infer_signature(example, example[:, :1]),
            pip_requirements=["mlflow"],
        )
    return Registry(settings).register(run.info.run_id, "constant")


class Load:
    """Requests at a steady rate from a thread: (version, value) of the answers, and errors."""

    def __init__(self, url: str) -> None:
        self.answers: list[tuple[str, float]] = []
        self.errors: list[str] = []
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with InferenceClient(self._url, "constant") as client:
            due = time.monotonic()
            while not self._ended.wait(max(0.0, due - time.monotonic())):
                due += 1 / RATE
                try:
                    prediction = client.infer(ROW)
                    (output,) = prediction.outputs.values()
                    self.answers.append((prediction.version, float(output[0, 0])))
                except Exception as error:  # noqa: BLE001 - counted, whatever it is
                    self.errors.append(str(error))


def test_an_alias_is_followed_under_load_and_a_broken_version_changes_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    first = register(settings, tmp_path, "1.0")
    second = register(settings, tmp_path, "2.0")
    # It runs where it is logged, and not where it is served.
    home = str(tmp_path / "server")
    broken = register(settings, tmp_path, f"(1 / 0 if __import__('os').getcwd() == {home!r} else 3.0)")
    registry = Registry(settings)
    registry.promote(first)
    (tmp_path / "server").mkdir()
    arguments = ("--model", "models:/constant@champion", "--follow", "--poll", "0.2")
    environment = {"SEMR_MLFLOW_URI": str(settings.mlflow_uri)}
    with server(tmp_path / "server", *arguments, environment=environment) as started:
        started.wait_until_ready()
        model_url = f"{started.url}/v2/models/constant"
        client = tracking.connect(settings)

        def wait_for(version: str) -> None:
            deadline = time.monotonic() + 60
            while httpx.get(model_url).json()["versions"] != [version]:
                assert time.monotonic() < deadline, started.errors.read_text()
                time.sleep(0.01)

        with Load(started.url) as load:
            for number in range(SWITCHES):
                ref = (second, first)[number % 2]
                client.set_registered_model_alias("constant", "champion", ref.version)
                wait_for(ref.version)
            client.set_registered_model_alias("constant", "champion", broken.version)
            deadline = time.monotonic() + 60
            while httpx.get(f"{model_url}/versions/{broken.version}/ready").status_code != 503:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            reason = httpx.get(f"{model_url}/versions/{broken.version}/ready").json()["error"]
            assert "division by zero" in reason
            assert httpx.get(f"{started.url}/v2/health/ready").status_code == 200
            time.sleep(0.3)
        assert load.errors == []
        assert set(load.answers) == {("1", 1.0), ("2", 2.0)}
        # The alias goes back to what is served: nothing is wrong any more.
        client.set_registered_model_alias("constant", "champion", first.version)
        deadline = time.monotonic() + 60
        while httpx.get(f"{model_url}/versions/{broken.version}/ready").status_code != 404:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_onnx_form_that_a_training_ships_is_served_without_the_framework(
    settings: Settings, tmp_path: Path
) -> None:
    pytest.importorskip("tf2onnx")
    pytest.importorskip("tensorflow")
    import keras

    from semr.inference.runtime import onnx_export

    tracking.connect(settings)
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.9), keras.layers.Dense(1)])
    rows = np.random.default_rng(0).random((20, 2)).astype(np.float32)
    expected = np.asarray(network(rows, training=False))
    signature = infer_signature(rows, expected)
    with mlflow.start_run() as run:
        info = mlflow.tensorflow.log_model(
            network, name="model", signature=signature, input_example=rows, pip_requirements=["keras"]
        )
    onnx_export.ship_keras(network, signature, rows, info.model_id)
    Registry(settings).register(run.info.run_id, "shipped")
    environment = {"SEMR_MLFLOW_URI": str(settings.mlflow_uri)}
    with server(tmp_path, "--model", "models:/shipped/1", environment=environment) as started:
        started.wait_until_ready()
        with InferenceClient(started.url, "shipped") as client:
            assert client.metadata().platform == "onnxruntime"
            (found,) = client.infer({"input-0": rows}).outputs.values()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        libraries = Path(f"/proc/{started.process.pid}/maps")
        if libraries.is_file():
            assert "tensorflow" not in libraries.read_text()
