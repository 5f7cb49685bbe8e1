"""An MLflow signature and input example as the protocol's tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from semr.inference.protocol import TensorMetadata
from semr.inference.runtime.model import ModelLoadError
from semr.inference.tensors import BYTES, DATATYPES, Array, datatype_name

logger = logging.getLogger(__name__)

#: Rows of the input example that warm the model up and show that it works.
EXAMPLE_ROWS = 8

_COLUMN_TYPES = {
    DataType.boolean: "BOOL",
    DataType.integer: "INT32",
    DataType.long: "INT64",
    DataType.float: "FP32",
    DataType.double: "FP64",
    DataType.string: BYTES,
    DataType.binary: BYTES,
    DataType.datetime: BYTES,
}


@dataclass(frozen=True)
class Contract:
    """Which tensors a model takes and returns.

    Attributes:
        inputs: tensors; with `is_table`, one of shape [-1] for each column.
        outputs: tensors of the signature, empty when it does not tell.
        optional: names of columns that may be missing.
        is_table: whether the model takes a data frame.
        is_named: whether the signature names the tensors; if not, there is one, with a name of the server's.
        binary: names of columns that take bytes and not text.
        dates: names of columns that take times, as ISO 8601 text.
    """

    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    optional: frozenset[str] = frozenset()
    is_table: bool = False
    is_named: bool = True
    binary: frozenset[str] = frozenset()
    dates: frozenset[str] = frozenset()

    def with_outputs_of(self, outputs: Mapping[str, Array]) -> Contract:
        """The contract with the outputs that the model returned on its example: names, datatypes and number of axes are
        what a client gets; sizes are the signature's where they fit."""
        told = {tensor.name: tensor.shape for tensor in self.outputs}
        tensors = []
        for name, array in outputs.items():
            shape = told.get(name, [])
            if len(shape) != array.ndim or any(
                want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)
            ):
                shape = [-1, *array.shape[1:]] if array.ndim else []
            tensors.append(TensorMetadata(name=name, datatype=datatype_name(array.dtype), shape=list(shape)))
        return replace(self, outputs=tuple(tensors))


def read_contract(model: Model, folder: Path) -> Contract:
    """The contract of the model saved in `folder`: its signature, else what its input example looks like.

    Raises:
        ModelLoadError: there is neither, or the signature has types that the protocol cannot carry.
    """
    signature = model.signature
    if signature is None or signature.inputs is None or not signature.inputs.inputs:
        return _contract_of_example(model, folder)
    return contract_of(signature)


def contract_of(signature: ModelSignature) -> Contract:
    """The contract of a signature that has inputs.

    Raises:
        ModelLoadError: it has types that the protocol cannot carry.
    """
    schema: Schema = signature.inputs
    outputs = _outputs(signature.outputs)
    if schema.is_tensor_spec():
        tensors = tuple(_tensor(spec, f"input-{index}") for index, spec in enumerate(schema.inputs))
        return Contract(tensors, outputs, is_named=bool(schema.has_input_names()))
    if not schema.has_input_names() or any(not isinstance(spec.type, DataType) for spec in schema.inputs):
        raise ModelLoadError("its signature has columns without names or of nested types, which are no tensors.")
    return Contract(
        tuple(_column(spec, str(spec.name)) for spec in schema.inputs),
        outputs,
        optional=frozenset(str(spec.name) for spec in schema.inputs if not spec.required),
        is_table=True,
        binary=frozenset(str(spec.name) for spec in schema.inputs if spec.type is DataType.binary),
        dates=frozenset(str(spec.name) for spec in schema.inputs if spec.type is DataType.datetime),
    )


def read_example(model: Model, folder: Path, contract: Contract) -> dict[str, Array]:
    """Up to `EXAMPLE_ROWS` rows of the input example; without one that fits, a single row of zeros."""
    try:
        content: Any = model.load_input_example(str(folder))
    except Exception as error:  # noqa: BLE001 - whatever an old or foreign example makes MLflow raise
        logger.warning("the input example of the model in %s cannot be read: %s", folder, error)
        content = None
    arrays = _example_arrays(content, contract) if content is not None else None
    return arrays or {
        tensor.name: _zeros(tensor.datatype, [1 if size < 0 else size for size in tensor.shape])
        for tensor in contract.inputs
    }


def _contract_of_example(model: Model, folder: Path) -> Contract:
    content: Any = model.load_input_example(str(folder))
    arrays = content if isinstance(content, dict) else {"input-0": content}
    if not all(isinstance(array, np.ndarray) and array.ndim for array in arrays.values()):
        raise ModelLoadError(
            "it has no signature, nor an array as input example: log it with signature=infer_signature(inputs, outputs)."
        )
    tensors = tuple(
        TensorMetadata(name=str(name), datatype=datatype_name(array.dtype), shape=[-1, *array.shape[1:]])
        for name, array in arrays.items()
    )
    return Contract(tensors, (), is_named=isinstance(content, dict))


def _example_arrays(content: Any, contract: Contract) -> dict[str, Array] | None:  # noqa: ANN401
    if isinstance(content, np.ndarray):
        content = {contract.inputs[0].name: content}
    arrays: dict[str, Array] = {}
    for tensor in contract.inputs:
        try:
            array = np.asarray(content[tensor.name])
            array = _text(array) if tensor.datatype == BYTES else array.astype(DATATYPES[tensor.datatype])
        except (KeyError, TypeError, ValueError, IndexError):
            return None
        fits = array.ndim == len(tensor.shape) and all(
            want in (-1, have) for want, have in zip(tensor.shape, array.shape, strict=True)
        )
        if not fits or not array.size:
            return None
        arrays[tensor.name] = array[:EXAMPLE_ROWS] if tensor.shape[0] == -1 else array
    return arrays


def _text(array: Array) -> Array:
    elements = [element if isinstance(element, bytes) else str(element).encode() for element in array.ravel().tolist()]
    texts = np.empty(len(elements), object)
    texts[:] = elements
    return texts.reshape(array.shape)


def _zeros(datatype: str, shape: list[int]) -> Array:
    return np.full(shape, b"", object) if datatype == BYTES else np.zeros(shape, DATATYPES[datatype])


def _outputs(schema: Schema | None) -> tuple[TensorMetadata, ...]:
    """The tensors of an output schema; columns without a name and nested types tell nothing."""
    if schema is None or not schema.inputs:
        return ()
    if schema.is_tensor_spec():
        return tuple(_tensor(spec, f"output-{index}") for index, spec in enumerate(schema.inputs))
    if any(not isinstance(spec.type, DataType) for spec in schema.inputs):
        return ()
    return tuple(_column(spec, str(spec.name or f"output-{index}")) for index, spec in enumerate(schema.inputs))


def _tensor(spec: TensorSpec, default_name: str) -> TensorMetadata:
    return TensorMetadata(
        name=spec.name or default_name, datatype=datatype_name(spec.type), shape=[int(size) for size in spec.shape]
    )


def _column(spec: ColSpec, name: str) -> TensorMetadata:
    return TensorMetadata(name=name, datatype=_COLUMN_TYPES[spec.type], shape=[-1])
