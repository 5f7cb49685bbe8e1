"""Models of PyTorch, saved by MLflow and loaded by the server: as programs of `torch.export`, as modules, in ONNX form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import infer_signature

from semr.inference.options import load_options
from semr.inference.runtime import LoadedModel, load_version, onnx, onnx_export
from semr.inference.source import parse_source
from semr.settings import Settings
from workflow_examples.qoe.features import Scaling
from workflow_examples.qoe.model import ARCHITECTURES, ModelConfig, build_model, served_model

# Triton, which compiles for GPUs, crashes in a process that has loaded TensorFlow for other tests; PyTorch does without.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
torch = pytest.importorskip("torch")

EXAMPLE = np.random.default_rng(0).random((8, 10, 2)).astype(np.float32)


def load(path: Path, **options: Any) -> LoadedModel:
    return load_version(parse_source(str(path)).unregistered, Settings(), load_options(**options))


def forecaster(architecture: str) -> Any:
    torch.manual_seed(0)
    network = build_model(ModelConfig(architecture, hidden=8))
    torch.nn.init.normal_(network.head.weight)  # it begins as the persistence forecast
    return served_model(network, Scaling((1.0, 2.0), (3.0, 4.0))).eval()


def answers(network: Any, rows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(rows)).numpy())


def save(network: Any, path: Path, **more: Any) -> Path:
    mlflow.pytorch.save_model(
        network,
        str(path),
        signature=infer_signature(EXAMPLE, answers(network, EXAMPLE)),
        input_example=EXAMPLE,
        pip_requirements=["torch"],
        **more,
    )
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_exported_program_of_any_batch_size(tmp_path: Path, architecture: str) -> None:
    network = forecaster(architecture)
    loaded = load(save(network, tmp_path / "model", serialization_format="pt2"), runtime="native")
    assert (loaded.platform, loaded.is_batchable, loaded.tolerance) == ("pytorch", True, None)
    assert [(each.datatype, each.shape) for each in loaded.inputs] == [("FP32", [-1, 10, 2])]
    for rows in (1, 3, 100):
        windows = np.random.default_rng(rows).random((rows, 10, 2)).astype(np.float32)
        (found,) = loaded.predict({loaded.inputs[0].name: windows}).values()
        np.testing.assert_allclose(found, answers(network, windows), rtol=1e-4, atol=1e-5)


def test_a_module_and_its_tolerance(tmp_path: Path) -> None:
    network = forecaster("linear")
    path = save(network, tmp_path / "model", serialization_format="pickle", metadata={"semr.tolerance": "1.5,2"})
    loaded = load(path, runtime="native")
    assert (loaded.platform, loaded.tolerance) == ("pytorch", (1.5, 2.0))
    (found,) = loaded.predict({loaded.inputs[0].name: EXAMPLE}).values()
    np.testing.assert_allclose(found, answers(network, EXAMPLE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_training_ships_computes_the_same(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = forecaster(architecture)
    path = save(network, tmp_path / "model", serialization_format="pt2")

    class Client:
        """Takes the form into the model's folder instead of to a server."""

        def log_model_artifacts(self, model_id: str, folder: str, name: str) -> None:
            (path / name).mkdir()
            for file in Path(folder).iterdir():
                (path / name / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(onnx_export, "MlflowClient", Client)
    signature = infer_signature(EXAMPLE, answers(network, EXAMPLE))
    onnx_export.ship_torch(network, signature, EXAMPLE, "m-1")
    assert (path / onnx.FOLDER / onnx.MODEL_FILE).is_file()
    loaded = load(path, runtime="onnx")
    assert (loaded.platform, loaded.is_batchable) == ("onnxruntime", True)
    for rows in (1, 5):
        (found,) = loaded.predict({loaded.inputs[0].name: EXAMPLE[:rows]}).values()
        np.testing.assert_allclose(found, answers(network, EXAMPLE[:rows]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_program_without_a_form_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = forecaster("linear")
    path = save(network, tmp_path / "model", serialization_format="pt2")
    onnx_export.export(path, path / onnx.FOLDER)
    loaded = load(path, runtime="onnx")
    (found,) = loaded.predict({loaded.inputs[0].name: EXAMPLE[:3]}).values()
    np.testing.assert_allclose(found, answers(network, EXAMPLE[:3]), rtol=1e-4, atol=1e-4)


def test_every_forecaster_begins_as_persistence() -> None:
    for architecture in ARCHITECTURES:
        network = served_model(build_model(ModelConfig(architecture)), Scaling((1.0, 2.0), (3.0, 4.0)))
        np.testing.assert_allclose(answers(network, EXAMPLE), EXAMPLE[:, -1], rtol=1e-5)
