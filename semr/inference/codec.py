"""Bodies of inference requests and responses: JSON, and JSON followed by raw tensors (binary tensor extension)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from semr.errors import InvalidInputError
from semr.inference.protocol import (
    BINARY_OUTPUT,
    BINARY_OUTPUTS,
    BINARY_SIZE,
    InferInput,
    InferRequest,
    Parameters,
    RequestedOutput,
)
from semr.inference.tensors import Array, datatype_name, from_bytes, to_bytes, to_json

#: Length of the JSON part of a body that goes on with raw tensors.
HEADER_LENGTH = "Inference-Header-Content-Length"


# Letters that names and the protocol's own words have; a body with more is searched for the words.
_MOST_LETTERS = 32


class InvalidBodyError(InvalidInputError):
    """The body of a request cannot be read."""


@dataclass(frozen=True)
class DecodedRequest:
    """A request with its input tensors by name, in its own order; `is_json` tells that none of them came as raw bytes."""

    request: InferRequest
    inputs: dict[str, Array]
    is_json: bool


@dataclass(frozen=True)
class EncodedResponse:
    """The body of an answer; `header_length` is the length of its JSON part, None when there is nothing else."""

    body: bytes
    header_length: int | None


def decode_request(body: bytes, header_length: str | None = None) -> DecodedRequest:
    """Parse a request's body.

    Args:
        body: JSON, then raw tensors if there are any.
        header_length: value of the HTTP header `HEADER_LENGTH`, None when it is missing.

    Raises:
        InvalidBodyError: it is not JSON, or not of the protocol's form.
        InvalidTensorError: a tensor is not what it says.
    """
    end = len(body) if header_length is None else _parse_length(header_length, len(body))
    view = memoryview(body)
    try:
        content = orjson.loads(view[:end] if end < len(body) else body)
    except orjson.JSONDecodeError as error:
        raise InvalidBodyError(f"The body is not JSON: {error}.") from error
    request = parse_request(content)
    raw = view[end:]
    inputs: dict[str, Array] = {}
    has_booleans = _may_hold_booleans(body)
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise InvalidBodyError(f"Input {tensor.name!r} is given twice.")
        size = _binary_size(tensor)
        if size is None:
            inputs[tensor.name] = tensor.to_array(has_booleans=has_booleans)
            continue
        if size > len(raw):
            raise InvalidBodyError(
                f"Input {tensor.name!r} announces {size} bytes of binary data, but only {len(raw)} are left of the body."
            )
        inputs[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, raw[:size])
        raw = raw[size:]
    if len(raw):
        raise InvalidBodyError(f"The body has {len(raw)} bytes more than its inputs announce as {BINARY_SIZE}.")
    return DecodedRequest(request, inputs, end == len(body))


def parse_request(content: object) -> InferRequest:
    """Check parsed JSON against the protocol.

    Raises:
        InvalidBodyError: naming the first place that does not fit.
    """
    try:
        return InferRequest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidBodyError(f"The request cannot be read: {where + ': ' if where else ''}{first['msg']}.") from error


def encode_request(inputs: Mapping[str, Array], request_id: str | None = None) -> tuple[bytes, int]:
    """Body of a request with its tensors as raw bytes, and the length of its JSON part, which `HEADER_LENGTH` tells.

    Raises:
        InvalidTensorError: an array has a type that the protocol does not know.
    """
    tensors = {name: to_bytes(array) for name, array in inputs.items()}
    head: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype_name(array.dtype),
                "parameters": {BINARY_SIZE: len(tensors[name])},
            }
            for name, array in inputs.items()
        ]
    }
    if request_id is not None:
        head["id"] = request_id
    text = orjson.dumps(head)
    return b"".join([text, *tensors.values()]), len(text)


def wants_binary(request: InferRequest, output: RequestedOutput | None) -> bool:
    """Whether an output is to be sent as raw bytes: what the output says, else what the request says for all."""
    if output is not None and output.parameters and BINARY_OUTPUT in output.parameters:
        return bool(output.parameters[BINARY_OUTPUT])
    return bool((request.parameters or {}).get(BINARY_OUTPUTS, False))


def encode_response(
    model: str, version: str, request: InferRequest, outputs: Mapping[str, Array], parameters: Parameters
) -> EncodedResponse:
    """The body of an answer with `outputs` in their order.

    Raises:
        InvalidTensorError: an output has no form in the protocol.
    """
    wanted = {output.name: output for output in request.outputs or ()}
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, array in outputs.items():
        tensor: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": datatype_name(array.dtype)}
        if wants_binary(request, wanted.get(name)):
            data = to_bytes(array)
            tensor["parameters"] = {BINARY_SIZE: len(data)}
            raw.append(data)
        else:
            tensor["data"] = to_json(array)
        tensors.append(tensor)
    content: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if request.id is not None:
        content["id"] = request.id
    if parameters:
        content["parameters"] = parameters
    head = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    # Raw output of no bytes needs the header too: it is how a client tells the two forms apart.
    return EncodedResponse(b"".join([head, *raw]), len(head)) if raw else EncodedResponse(head, None)


def _may_hold_booleans(body: bytes) -> bool:
    """Whether `true` or `false` stands anywhere in the body.

    Numbers have neither "u" nor "l", so looking for these, a tenth of the time that looking for the words takes, ends soon.
    """
    for letter, word, offset in ((b"u", b"true", 2), (b"l", b"false", 2)):
        at = -1
        for _ in range(_MOST_LETTERS):
            at = body.find(letter, at + 1)
            if at < 0:
                break
            if body.startswith(word, at - offset if at >= offset else 0):
                return True
        else:
            if word in body:
                return True
    return False


def _parse_length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) > most:
        raise InvalidBodyError(f"{HEADER_LENGTH} is {text!r}, which is no length within the body of {most} bytes.")
    return int(text)


def _binary_size(tensor: InferInput) -> int | None:
    size = (tensor.parameters or {}).get(BINARY_SIZE)
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidBodyError(f"Input {tensor.name!r} has a {BINARY_SIZE} that is no number of bytes: {size!r}.")
    if tensor.data is not None:
        raise InvalidBodyError(f"Input {tensor.name!r} has both data and {BINARY_SIZE}: send one of them.")
    return size
