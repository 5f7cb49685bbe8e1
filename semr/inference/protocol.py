"""Types of the Open Inference Protocol V2 (https://github.com/kserve/open-inference-protocol), JSON tensors.

This module knows tensors and nothing of models; `runtime` and `app` use it on the server, `client` on the other side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from semr.errors import InvalidInputError

Array = npt.NDArray[Any]

#: The protocol's names of numeric datatypes and NumPy's.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
#: Parameter of an answer, to be sent back with feedback.
PREDICTION_ID = "prediction_id"

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class InvalidTensorError(InvalidInputError):
    """A tensor does not say what it holds: unknown datatype, or data that do not fit shape or datatype."""


class TensorMetadata(BaseModel):
    """Name, datatype and shape of a model's input or output; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ServerMetadata(BaseModel):
    """Answer of `GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(BaseModel):
    """Answer of `GET /v2/models/{model}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferInput(BaseModel):
    """One input tensor; `data` is flat in row-major order or nested as the shape says."""

    model_config = ConfigDict(extra="forbid")

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any]

    def to_array(self) -> Array:
        """The tensor as an array of `shape`.

        Raises:
            InvalidTensorError: unknown datatype, negative size, wrong number of elements, or elements that do not fit.
        """
        dtype = DATATYPES.get(self.datatype)
        if dtype is None:
            raise InvalidTensorError(
                f"Input {self.name!r} has datatype {self.datatype!r}; known are {', '.join(DATATYPES)}."
            )
        if any(size < 0 for size in self.shape):
            raise InvalidTensorError(f"Input {self.name!r} has a negative size in its shape {self.shape}.")
        array = self._parse(dtype)
        if array.size != math.prod(self.shape):
            raise InvalidTensorError(
                f"Input {self.name!r} has {array.size} elements, but its shape {self.shape} needs {math.prod(self.shape)}."
            )
        return array.reshape(self.shape)

    def _parse(self, dtype: np.dtype[Any]) -> Array:
        refusal = InvalidTensorError(f"Input {self.name!r} has data that are not {self.datatype} in an even nesting.")
        try:
            loose = np.asarray(self.data)
        except ValueError as error:  # uneven nesting
            raise refusal from error
        if loose.size == 0:
            return np.empty(0, dtype)
        # NumPy would turn text, booleans and fractions into numbers without a word.
        allowed = {"b": "b", "u": "ui", "i": "ui", "f": "uif"}[dtype.kind]
        if loose.dtype.kind not in allowed:
            raise refusal
        if dtype.kind in "ui":
            limits = np.iinfo(dtype)
            if int(loose.min()) < limits.min or int(loose.max()) > limits.max:
                raise InvalidTensorError(f"Input {self.name!r} has values outside of the range of {self.datatype}.")
        with np.errstate(over="ignore"):
            return loose.astype(dtype)


class RequestedOutput(BaseModel):
    """Name of an output that the client wants."""

    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(BaseModel):
    """Body of `POST /v2/models/{model}/infer`."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[InferInput] = Field(min_length=1)
    outputs: list[RequestedOutput] | None = None


class InferOutput(BaseModel):
    """One output tensor, `data` flat in row-major order."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]

    def to_array(self) -> Array:
        """The tensor as an array of `shape`."""
        return np.asarray(self.data, dtype=DATATYPES[self.datatype]).reshape(self.shape)


class InferResponse(BaseModel):
    """Answer of `POST /v2/models/{model}/infer`."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[InferOutput]


class ErrorResponse(BaseModel):
    """Body of every answer with a status of 400 or more."""

    error: str


def datatype_name(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a NumPy dtype.

    Raises:
        InvalidTensorError: the protocol has no such datatype.
    """
    name = _NAMES.get(np.dtype(dtype))
    if name is None:
        raise InvalidTensorError(f"The Open Inference Protocol has no datatype for {dtype}.")
    return name


def infer_input(name: str, array: Array) -> InferInput:
    """An array as an input tensor with flat data."""
    return InferInput(
        name=name, shape=list(array.shape), datatype=datatype_name(array.dtype), data=array.ravel().tolist()
    )


def infer_output(name: str, array: Array) -> InferOutput:
    """An array as an output tensor with flat data."""
    return InferOutput(
        name=name, shape=list(array.shape), datatype=datatype_name(array.dtype), data=array.ravel().tolist()
    )
