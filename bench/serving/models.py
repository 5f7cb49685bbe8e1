"""The models that are served: a small image classifier and a recurrent forecaster, in Keras and in ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from semr.inference.runtime import onnx, onnx_export

NAMES = ("cnn", "lstm")


@dataclass(frozen=True)
class BenchModel:
    """A model in several forms.

    Attributes:
        name: of the folder and of the registered model.
        keras: MLflow model of Keras; its ONNX form lies within.
        onnx: MLflow model of ONNX.
        example: one row of input.
    """

    name: str
    keras: Path
    onnx: Path
    example: npt.NDArray[np.float32]

    @property
    def onnx_file(self) -> Path:
        """The bare ONNX file."""
        return self.keras / onnx.FOLDER / onnx.MODEL_FILE

    def body(self) -> bytes:
        """A request of the Open Inference Protocol for one row."""
        shape = list(self.example.shape)
        tensor = {"name": "input-0", "shape": shape, "datatype": "FP32", "data": self.example.ravel().tolist()}
        return orjson.dumps({"inputs": [tensor]})

    def mlflow_body(self) -> bytes:
        """A request of MLflow's own scoring protocol for one row."""
        return orjson.dumps({"inputs": self.example.tolist()})


def save(folder: Path, name: str) -> BenchModel:
    """Make the model `name`, of random weights: `cnn` takes pictures of 28 by 28, `lstm` 20 steps of 4 numbers."""
    import keras  # noqa: PLC0415 - takes seconds
    import mlflow  # noqa: PLC0415
    import onnx as onnx_files  # noqa: PLC0415
    from mlflow.models import infer_signature  # noqa: PLC0415

    layers = keras.layers
    if name == "cnn":
        network = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(16, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(32, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(64, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )
    else:
        recurrent = [layers.LSTM(150, return_sequences=True), layers.LSTM(150, return_sequences=True), layers.LSTM(150)]
        network = keras.Sequential([keras.Input((20, 4)), *recurrent, layers.Dense(1)])
    rows = np.random.default_rng(0).random((4, *network.input_shape[1:])).astype(np.float32)
    signature = infer_signature(rows, np.asarray(network(rows, training=False)))
    model = BenchModel(name, folder / f"{name}-keras", folder / f"{name}-onnx", rows[:1])
    mlflow.tensorflow.save_model(
        network, str(model.keras), signature=signature, input_example=rows, pip_requirements=["keras"]
    )
    onnx_export.export(model.keras, model.keras / onnx.FOLDER)
    mlflow.onnx.save_model(
        onnx_files.load(str(model.onnx_file)), str(model.onnx), signature=signature, pip_requirements=["onnxruntime"]
    )
    return model
