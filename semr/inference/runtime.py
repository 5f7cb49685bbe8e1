"""From an MLflow model to a batch prediction on arrays, checked against the model's signature before the model sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import load_model
from mlflow.types import TensorSpec

from semr import tracking
from semr.errors import InvalidInputError, SemrError
from semr.inference.protocol import DATATYPES, Array, TensorMetadata, datatype_name
from semr.registry import ModelVersionRef, Registry
from semr.settings import Settings, get_settings

Predict = Callable[[dict[str, Array]], dict[str, Array]]


class ModelLoadError(SemrError):
    """A model version cannot be loaded or does not work on its own input example."""


class InvalidRequestError(InvalidInputError):
    """The inputs of a request do not fit the model's signature."""


@dataclass(frozen=True)
class LoadedModel:
    """A model version in memory, warmed up, with its contract of tensors.

    Attributes:
        ref: which version it is.
        platform: the framework, as `mlflow_keras`.
        inputs: tensors that `predict` takes, the first axis being the batch.
        outputs: tensors that it returns.
    """

    ref: ModelVersionRef
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    _predict: Predict = field(repr=False)

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name.

        Raises:
            InvalidRequestError: names, datatypes or shapes do not fit, or the batch sizes differ.
        """
        self._check(inputs)
        return self._predict(dict(inputs))

    def _check(self, inputs: Mapping[str, Array]) -> None:
        wanted = {tensor.name: tensor for tensor in self.inputs}
        if set(inputs) != set(wanted):
            raise InvalidRequestError(
                f"Model {self.ref.name!r} takes the inputs {sorted(wanted)}, but the request has {sorted(inputs)}."
            )
        for name, array in inputs.items():
            tensor = wanted[name]
            if datatype_name(array.dtype) != tensor.datatype:
                raise InvalidRequestError(
                    f"Input {name!r} must have datatype {tensor.datatype}, not {datatype_name(array.dtype)}."
                )
            fits = len(array.shape) == len(tensor.shape) and all(
                want in (-1, have) for want, have in zip(tensor.shape, array.shape, strict=True)
            )
            if not fits:
                raise InvalidRequestError(
                    f"Input {name!r} must have shape {tensor.shape} (-1: any size), not {list(array.shape)}."
                )
            if array.size == 0:
                raise InvalidRequestError(f"Input {name!r} is empty: send at least one example.")
        if len({array.shape[0] for array in inputs.values()}) > 1:
            raise InvalidRequestError("All inputs of a request must have the same batch size, their first axis.")


def load(name: str, version_or_alias: str, settings: Settings | None = None) -> LoadedModel:
    """Load a registered model version and try it on its own input example.

    Raises:
        ModelNotFoundError: there is no such version.
        ModelLoadError: it has no tensor signature, cannot be loaded, or fails on its example.
        DependencyUnavailableError: MLflow or the store behind it is away.
    """
    settings = settings or get_settings()
    ref = Registry(settings).get(name, version_or_alias)
    with tracking.named_errors(settings):
        try:
            return _load(ref)
        except (MlflowException, ImportError, OSError, ValueError) as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() >= 500:
                raise
            raise ModelLoadError(f"{ref.uri} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def _load(ref: ModelVersionRef) -> LoadedModel:
    model = load_model(ref.uri)
    metadata: Model = model.metadata
    signature = metadata.signature
    if signature is None or signature.outputs is None or not signature.inputs.is_tensor_spec():
        raise ModelLoadError(f"{ref.uri} has no signature of tensors: log it with infer_signature(inputs, outputs).")
    inputs = tuple(_tensor(spec, f"input-{index}") for index, spec in enumerate(signature.inputs.inputs))
    outputs = tuple(_tensor(spec, f"output-{index}") for index, spec in enumerate(signature.outputs.inputs))
    keras_path = _is_keras(metadata) and len(inputs) == 1 and len(outputs) == 1
    predict = _keras_predict(model, inputs[0], outputs[0]) if keras_path else _pyfunc_predict(model, inputs, outputs)
    loaded = LoadedModel(
        ref=ref,
        platform="mlflow_keras" if keras_path else "mlflow_pyfunc",
        inputs=inputs,
        outputs=outputs,
        _predict=predict,
    )
    loaded.predict(_example(inputs))
    return loaded


def _is_keras(metadata: Model) -> bool:
    return "keras" in metadata.flavors or metadata.flavors.get("tensorflow", {}).get("model_type") == "keras"


def _tensor(spec: TensorSpec, default_name: str) -> TensorMetadata:
    return TensorMetadata(
        name=spec.name or default_name, datatype=datatype_name(spec.type), shape=[int(size) for size in spec.shape]
    )


def _example(inputs: tuple[TensorMetadata, ...]) -> dict[str, Array]:
    """One example of zeros: it warms the model up, and shows whether it can answer at all."""
    return {
        tensor.name: np.zeros([1 if size < 0 else size for size in tensor.shape], DATATYPES[tensor.datatype])
        for tensor in inputs
    }


def _keras_predict(model: Any, only_input: TensorMetadata, only_output: TensorMetadata) -> Predict:  # noqa: ANN401
    """The Keras model itself: `keras.Model.predict` sets up a data pipeline for each call and is 100 times slower."""
    import keras  # noqa: PLC0415 - the model has imported it; models of other frameworks do without

    network = model.get_raw_model()
    forward = _tensorflow_forward if keras.config.backend() == "tensorflow" else _any_forward
    call = forward(network, only_input)
    return lambda arrays: {only_output.name: call(arrays[only_input.name])}


def _tensorflow_forward(network: Any, tensor: TensorMetadata) -> Callable[[Array], Array]:  # noqa: ANN401
    """One graph for every batch size, safe in threads; measured: twice the requests a second of `predict_on_batch`."""
    import tensorflow as tf  # noqa: PLC0415

    shape = [None if size < 0 else size for size in tensor.shape]
    dtype = DATATYPES[tensor.datatype]
    signature = [tf.TensorSpec(shape, dtype)]
    graph = tf.function(lambda batch: network(batch, training=False), input_signature=signature)
    compiled = graph.get_concrete_function()
    return lambda batch: np.asarray(compiled(tf.constant(batch, dtype)))


def _any_forward(network: Any, _: TensorMetadata) -> Callable[[Array], Array]:  # noqa: ANN401
    # `predict_on_batch` compiles for each batch shape when first seen; the lock keeps threads from doing so twice.
    lock = threading.Lock()

    def call(batch: Array) -> Array:
        with lock:
            return np.asarray(network.predict_on_batch(batch))

    return call


def _pyfunc_predict(model: Any, inputs: tuple[TensorMetadata, ...], outputs: tuple[TensorMetadata, ...]) -> Predict:  # noqa: ANN401
    is_named = model.metadata.signature.inputs.has_input_names()

    def predict(arrays: dict[str, Array]) -> dict[str, Array]:
        result = model.predict(arrays if is_named else arrays[inputs[0].name])
        if isinstance(result, Mapping):
            return {name: np.asarray(value) for name, value in result.items()}
        return {outputs[0].name: np.asarray(result)}

    return predict
