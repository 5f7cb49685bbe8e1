"""Types of the Open Inference Protocol V2 (https://github.com/kserve/open-inference-protocol) with its JSON tensors.

This module knows tensors and nothing of models; the server parses requests with `codec`, `client` is the other side.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from semr.inference.tensors import DATATYPES, Array, InvalidTensorError, datatype_name, from_json

__all__ = ["DATATYPES", "Array", "InvalidTensorError", "datatype_name"]

#: Parameter of an answer, to be sent back with feedback.
PREDICTION_ID = "prediction_id"
#: Parameters of the binary tensor extension: size of a tensor's bytes; whether an output, or all of them, are wanted so.
BINARY_SIZE = "binary_data_size"
BINARY_OUTPUT = "binary_data"
BINARY_OUTPUTS = "binary_data_output"

Parameters = dict[str, str | int | float | bool]

# Elements are checked against the datatype when the array is made, which is faster than checking them twice.
_Elements = Annotated[
    list[Any],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"anyOf": [{"type": kind} for kind in ("number", "boolean", "string", "array")]},
            "description": "Flat in row-major order, or nested as the shape says.",
        }
    ),
]


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


class ServerLive(BaseModel):
    """Answer of `GET /v2/health/live`."""

    live: Literal[True] = True


class ServerReady(BaseModel):
    """Answer of `GET /v2/health/ready`."""

    ready: Literal[True] = True


class ModelReady(BaseModel):
    """Answer of `GET /v2/models/{model}/ready`."""

    name: str
    version: str
    ready: Literal[True] = True


class ModelMetadata(BaseModel):
    """Answer of `GET /v2/models/{model}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelList(BaseModel):
    """Answer of `GET /v2/models`: names."""

    models: list[str]


class RepositoryIndexRequest(BaseModel):
    """Body of `POST /v2/repository/index`: whether only models that are ready are wanted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ready: bool = False


class RepositoryEntry(BaseModel):
    """A model version in the answer of `POST /v2/repository/index`; `reason` says why it is not available."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING"]
    reason: str = ""


class InferInput(BaseModel):
    """One input tensor; `data` is flat in row-major order or nested as the shape says, and missing when it is binary."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: _Elements | None = None

    def to_array(self, *, has_booleans: bool = True) -> Array:
        """The tensor of the JSON data as an array of `shape`; see `from_json`.

        Raises:
            InvalidTensorError: unknown datatype, negative size, wrong number of elements, or elements that do not fit.
        """
        if self.data is None:
            raise InvalidTensorError(f"Input {self.name!r} has no data.")
        return from_json(self.name, self.datatype, self.shape, self.data, has_booleans=has_booleans)


class RequestedOutput(BaseModel):
    """Name of an output that the client wants."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    parameters: Parameters | None = None


class InferRequest(BaseModel):
    """Body of `POST /v2/models/{model}/infer`. Clients of Triton also name the model here; the path is what counts."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    id: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    parameters: Parameters | None = None
    inputs: list[InferInput] = Field(min_length=1)
    outputs: list[RequestedOutput] | None = None


class InferOutput(BaseModel):
    """One output tensor, `data` flat in row-major order, or missing when it is binary."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: _Elements | None = None

    def to_array(self) -> Array:
        """The tensor of the JSON data as an array of `shape`."""
        return from_json(self.name, self.datatype, self.shape, self.data or [])


class InferResponse(BaseModel):
    """Answer of `POST /v2/models/{model}/infer`."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[InferOutput]


class ErrorResponse(BaseModel):
    """Body of every answer with a status of 400 or more."""

    error: str
