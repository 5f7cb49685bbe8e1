"""Models of each framework, saved by MLflow and loaded by the server: contract, values, ways of computing, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from serving import save_steps
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from semr.inference.options import load_options
from semr.inference.runtime import (
    InvalidRequestError,
    LoadedModel,
    ModelLoadError,
    ModelOutputError,
    load_version,
    onnx,
    onnx_export,
)
from semr.inference.source import parse_source
from semr.settings import Settings

RANDOM = np.random.default_rng(0)
X = RANDOM.random((60, 4)).astype(np.float32)


def load(path: Path, **options: Any) -> LoadedModel:
    return load_version(parse_source(str(path)).unregistered, Settings(), load_options(**options))


def save_classifier(folder: Path, **more: Any) -> tuple[Path, LogisticRegression]:
    estimator = LogisticRegression().fit(X, (X[:, 0] > 0.5).astype(np.int64))
    path = folder / "classifier"
    mlflow.sklearn.save_model(
        estimator,
        str(path),
        signature=more.pop("signature", infer_signature(X, estimator.predict(X))),
        input_example=X[:3],
        pip_requirements=["scikit-learn"],
        **more,
    )
    return path, estimator


def test_scikit_learn_by_itself(tmp_path: Path) -> None:
    path, estimator = save_classifier(tmp_path)
    loaded = load(path, runtime="native")
    assert loaded.platform == "sklearn"
    assert [(each.name, each.datatype, each.shape) for each in loaded.inputs] == [("input-0", "FP32", [-1, 4])]
    assert [(each.datatype, each.shape) for each in loaded.outputs] == [("INT64", [-1])]
    assert loaded.is_batchable
    assert loaded.cost.call > 0
    np.testing.assert_array_equal(loaded.predict({"input-0": X})["output-0"], estimator.predict(X))


def test_scikit_learn_serves_the_function_it_was_logged_with(tmp_path: Path) -> None:
    path, estimator = save_classifier(tmp_path, pyfunc_predict_fn="predict_proba", signature=infer_signature(X))
    loaded = load(path, runtime="native")
    np.testing.assert_allclose(loaded.predict({"input-0": X})["output-0"], estimator.predict_proba(X))


def test_scikit_learn_in_onnx_form_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("skl2onnx")
    path, estimator = save_classifier(tmp_path)
    loaded = load(path, runtime="onnx")
    assert loaded.platform == "onnxruntime"
    np.testing.assert_array_equal(loaded.predict({"input-0": X})["output-0"], estimator.predict(X))


def test_a_shipped_form_is_used_and_one_that_differs_is_not(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("skl2onnx")
    path, estimator = save_classifier(tmp_path)
    form = path / onnx.FOLDER
    onnx_export.export(path, form)
    assert load(path).platform == "onnxruntime"
    inputs, outputs = onnx.read_parity(form)
    wrong = {name: array + 1 for name, array in outputs.items()}
    onnx.write_parity(form, inputs, wrong)
    loaded = load(path)
    assert loaded.platform == "sklearn"
    np.testing.assert_array_equal(loaded.predict({"input-0": X})["output-0"], estimator.predict(X))
    with pytest.raises(ModelLoadError, match="other values of output 'output-0'"):
        load(path, runtime="onnx")
    (form / onnx.MODEL_FILE).write_bytes(b"no model")
    with pytest.raises(ModelLoadError, match="ONNX Runtime cannot load it"):
        load(path, runtime="onnx")


def test_a_model_in_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from skl2onnx import to_onnx

    estimator = LinearRegression().fit(X, X @ np.float32([1, 2, 3, 4]))
    path = tmp_path / "linear"
    signature = infer_signature({"features": X}, {"score": estimator.predict(X).reshape(-1, 1)})
    mlflow.onnx.save_model(
        to_onnx(estimator, X[:1], target_opset=17), str(path), signature=signature, pip_requirements=["onnxruntime"]
    )
    loaded = load(path)
    assert loaded.platform == "onnxruntime"
    assert [(each.name, each.shape) for each in loaded.outputs] == [("score", [-1, 1])]
    found = loaded.predict({"features": X})["score"]
    np.testing.assert_allclose(found.ravel(), estimator.predict(X), rtol=1e-4)


def test_tables_come_as_columns(tmp_path: Path) -> None:
    table = pd.DataFrame({"city": ["Bonn", "Rome", "Bonn", "Oslo"], "size": [1.0, 2.0, 3.0, 4.0]})
    encode = ColumnTransformer([("city", OneHotEncoder(), ["city"])], remainder="passthrough")
    estimator = make_pipeline(encode, LinearRegression()).fit(table, [1.0, 2.0, 3.0, 4.0])
    path = tmp_path / "table"
    mlflow.sklearn.save_model(
        estimator,
        str(path),
        signature=infer_signature(table, estimator.predict(table)),
        pip_requirements=["scikit-learn"],
    )
    loaded_again = path / "MLmodel"
    assert loaded_again.is_file()
    with pytest.raises(ModelLoadError, match="unknown categories"):
        load(path)  # without an input example it is tried with empty text, which this model refuses
    mlflow.sklearn.save_model(
        estimator,
        str(tmp_path / "with_example"),
        signature=infer_signature(table, estimator.predict(table)),
        input_example=table,
        pip_requirements=["scikit-learn"],
    )
    loaded = load(tmp_path / "with_example")
    assert [(each.name, each.datatype, each.shape) for each in loaded.inputs] == [
        ("city", "BYTES", [-1]),
        ("size", "FP64", [-1]),
    ]
    city = np.array([b"Rome", b"Oslo"], object)
    found = loaded.predict({"city": city, "size": np.array([2.0, 4.0])})["output-0"]
    np.testing.assert_allclose(found, [2.0, 4.0])
    with pytest.raises(InvalidRequestError, match="UTF-8"):
        loaded.predict({"city": np.array([b"\xff"], object), "size": np.array([2.0])})


def test_a_model_of_python_code_with_named_tensors(tmp_path: Path) -> None:
    loaded = load(save_steps(tmp_path))
    assert loaded.platform == "pyfunc"
    # It tells how many rows its call had, so its rows are not independent.
    assert not loaded.is_batchable
    found = loaded.predict({"x": np.float32([[1, 2], [3, 4]])})
    assert found["y"].tolist() == [[2, 4], [6, 8]]
    assert found["rows"].tolist() == [2, 2]


def test_values_that_are_not_finite_are_refused_on_both_sides(tmp_path: Path) -> None:
    loaded = load(save_steps(tmp_path))
    with pytest.raises(InvalidRequestError, match="NaN or infinity"):
        loaded.predict({"x": np.float32([[np.inf, 0]])})
    with pytest.raises(ModelOutputError, match="NaN or infinity in output 'y'"):
        loaded.predict({"x": np.float32([[3000, 0]])})


def test_a_model_may_declare_that_it_takes_values_that_are_not_finite(tmp_path: Path) -> None:
    loaded = load(save_steps(tmp_path, non_finite="true", concurrency="3"))
    assert np.isnan(loaded.predict({"x": np.float32([[3000, np.nan]])})["y"]).any()
    assert loaded.concurrency == 3


def test_batching_is_off_where_a_model_says_so(tmp_path: Path) -> None:
    path, _ = save_classifier(tmp_path, metadata={"semr.batching": "off"})
    assert not load(path, runtime="native").is_batchable
    with pytest.raises(ModelLoadError, match="concurrency is no number"):
        load(save_steps(tmp_path, concurrency="many"))


def test_a_model_without_a_signature_is_known_by_its_example(tmp_path: Path) -> None:
    path, _ = save_classifier(tmp_path)
    description = path / "MLmodel"
    lines = description.read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("signature:"))
    end = next(index for index in range(start + 1, len(lines)) if not lines[index].startswith(" "))
    description.write_text("\n".join(lines[:start] + lines[end:]) + "\n")
    loaded = load(path, runtime="native")
    # The example is kept as JSON, whose numbers are double.
    assert [(each.name, each.datatype, each.shape) for each in loaded.inputs] == [("input-0", "FP64", [-1, 4])]
    for example in path.glob("*input_example*"):
        example.unlink()
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(path, runtime="native")


def test_what_cannot_be_loaded_says_which_and_why(tmp_path: Path) -> None:
    path = save_steps(tmp_path)
    (path / "steps.py").write_text("raise RuntimeError('broken on purpose')")
    with pytest.raises(ModelLoadError, match=r"steps cannot be loaded: .*broken on purpose"):
        load(path)
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(tmp_path / "missing")


def test_keras_by_itself_and_in_onnx_form(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    import keras

    network = keras.Sequential(
        [
            keras.Input((4,)),
            # Acts in training only; a form of the training graph would answer by chance.
            keras.layers.GaussianNoise(1.0),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    path = tmp_path / "network"
    expected = np.asarray(network(X, training=False))
    mlflow.tensorflow.save_model(
        network, str(path), signature=infer_signature(X, expected), input_example=X[:4], pip_requirements=["keras"]
    )
    native = load(path, runtime="native")
    assert native.platform == "keras"
    assert native.is_batchable
    np.testing.assert_allclose(native.predict({"input-0": X})["output-0"], expected, atol=1e-5)
    pytest.importorskip("tf2onnx")
    converted = load(path)
    assert converted.platform == "onnxruntime"
    np.testing.assert_allclose(converted.predict({"input-0": X})["output-0"], expected, atol=1e-5)


def test_pytorch_by_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is an extra (semr[torch]) of several GB")

    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.9), torch.nn.Softmax(dim=1))
    network.eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(X)).numpy()
    path = tmp_path / "module"
    mlflow.pytorch.save_model(
        network,
        str(path),
        signature=infer_signature(X, expected),
        serialization_format="pickle",
        pip_requirements=["torch"],
    )
    loaded = load(path, runtime="native")
    assert loaded.platform == "pytorch"
    read_only = np.frombuffer(X.tobytes(), np.float32).reshape(X.shape)
    np.testing.assert_allclose(loaded.predict({"input-0": read_only})["output-0"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("uri", "name", "selector"),
    [
        ("models:/mnist@champion", "mnist", "champion"),
        ("models:/mnist/12", "mnist", "12"),
        ("runs:/abc/model", "model", None),
        ("/somewhere/net", "net", None),
    ],
)
def test_sources_by_uri(uri: str, name: str, selector: str | None) -> None:
    source = parse_source(uri)
    assert (source.name, source.selector) == (name, selector)
