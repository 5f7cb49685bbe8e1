"""The frameworks' own paths: calls on the model itself, without the layers that `pyfunc` and `keras.Model.predict` add."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow.models import Model

from semr.inference.runtime import threads
from semr.inference.runtime.contract import Contract
from semr.inference.runtime.model import Predict
from semr.inference.runtime.results import as_table, as_text, named
from semr.inference.tensors import DATATYPES, Array


@dataclass(frozen=True)
class Backend:
    """How a model computes: the name of what does, the call, and whether its time depends on the input's shape alone."""

    platform: str
    predict: Predict
    is_steady: bool = True


def native_backend(model: Any, metadata: Model, contract: Contract, thread_count: int) -> Backend:  # noqa: ANN401
    """The fastest call that the framework of a loaded pyfunc model has.

    Args:
        model: what `mlflow.pyfunc.load_model` returned.
        metadata: its MLmodel file.
        contract: its tensors.
        thread_count: threads that the framework may use.
    """
    flavors = metadata.flavors
    if is_keras(metadata) and not contract.is_table:
        return Backend("keras", _keras(model.get_raw_model(), contract, thread_count))
    if "pytorch" in flavors and not contract.is_table:
        return Backend("pytorch", _torch(model.get_raw_model(), contract, thread_count))
    threads.limit_numeric_libraries(thread_count)
    if "sklearn" in flavors:
        return Backend("sklearn", _sklearn(model.get_raw_model(), metadata, contract))
    return Backend("pyfunc", _pyfunc(model, contract), is_steady=False)


def is_keras(metadata: Model) -> bool:
    """Whether the model is a Keras model."""
    return "keras" in metadata.flavors or metadata.flavors.get("tensorflow", {}).get("model_type") == "keras"


def _keras(network: Any, contract: Contract, thread_count: int) -> Predict:  # noqa: ANN401
    """The Keras model itself: `keras.Model.predict` sets up a data pipeline for each call and is 100 times slower."""
    import keras  # noqa: PLC0415 - the model has imported it; models of other frameworks do without

    output_names = [tensor.name for tensor in contract.outputs]
    single = contract.inputs[0].name if len(contract.inputs) == 1 else None
    if keras.config.backend() == "tensorflow":
        call = _tensorflow_graph(network, contract, thread_count)
    elif keras.config.backend() == "torch":
        threads.limit_torch(thread_count)
        call = _keras_batch(network)
    else:
        call = _keras_batch(network)
    return lambda arrays: named(call(arrays[single] if single is not None else arrays), output_names)


def _tensorflow_graph(network: Any, contract: Contract, thread_count: int) -> Callable[[Any], Any]:  # noqa: ANN401
    """One graph for every batch size, safe in threads; measured: twice the requests a second of `predict_on_batch`."""
    import tensorflow as tf  # noqa: PLC0415

    threads.limit_tensorflow(thread_count)
    specs = {
        tensor.name: tf.TensorSpec([None if size < 0 else size for size in tensor.shape], DATATYPES[tensor.datatype])
        for tensor in contract.inputs
    }
    signature = next(iter(specs.values())) if len(specs) == 1 else specs
    graph = tf.function(lambda batch: network(batch, training=False), input_signature=[signature])
    compiled = graph.get_concrete_function()
    if len(specs) == 1:
        return lambda batch: compiled(tf.constant(batch))
    return lambda arrays: graph({name: tf.constant(array) for name, array in arrays.items()})


def _keras_batch(network: Any) -> Callable[[Any], Any]:  # noqa: ANN401
    # `predict_on_batch` compiles for each batch shape when first seen; the lock keeps threads from doing so twice.
    lock = threading.Lock()

    def call(batch: Any) -> Any:  # noqa: ANN401
        with lock:
            return network.predict_on_batch(batch)

    return call


def _torch(network: Any, contract: Contract, thread_count: int) -> Predict:  # noqa: ANN401
    """The module itself, in evaluation mode and without autograd; several inputs go in as keyword arguments."""
    import torch  # noqa: PLC0415 - only models of PyTorch need it

    threads.limit_torch(thread_count)
    if isinstance(network, torch.nn.Module) and not _is_exported(network):
        network.eval()
    output_names = [tensor.name for tensor in contract.outputs]
    single = contract.inputs[0].name if len(contract.inputs) == 1 else None

    def tensor_of(array: Array) -> Any:  # noqa: ANN401
        # Tensors share the array's memory, and torch takes none that is read-only.
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    def predict(arrays: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            if single is not None:
                result = network(tensor_of(arrays[single]))
            else:
                result = network(**{name: tensor_of(array) for name, array in arrays.items()})
        return named(result, output_names)

    return predict


def _is_exported(network: Any) -> bool:  # noqa: ANN401
    """Whether the module came out of `torch.export`, which fixes the mode: `eval` raises there."""
    return type(network).__name__ in ("GraphModule", "_GuardedGraphModule") or hasattr(network, "_guards_fn")


def _sklearn(estimator: Any, metadata: Model, contract: Contract) -> Predict:  # noqa: ANN401
    """The estimator itself: pyfunc's checks of columns cost more than most estimators."""
    function = metadata.flavors.get("python_function", {}).get("predict_fn", "predict")
    call = getattr(estimator, function)
    output_names = [tensor.name for tensor in contract.outputs]
    if contract.is_table:
        return lambda arrays: named(call(as_table(arrays, contract)), output_names)
    name = contract.inputs[0].name
    return lambda arrays: named(call(_readable(arrays[name])), output_names)


def _pyfunc(model: Any, contract: Contract) -> Predict:  # noqa: ANN401
    output_names = [tensor.name for tensor in contract.outputs]

    def predict(arrays: Mapping[str, Array]) -> dict[str, Array]:
        if contract.is_table:
            return named(model.predict(as_table(arrays, contract)), output_names)
        readable = {name: _readable(array) for name, array in arrays.items()}
        return named(model.predict(readable if contract.is_named else next(iter(readable.values()))), output_names)

    return predict


def _readable(array: Array) -> Array:
    return as_text(array) if array.dtype == np.dtype(object) else array
