"""The OpenAPI description of the paths that `front` answers, beside those that FastAPI describes by itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from semr.inference.http_errors import HttpError
from semr.inference.protocol import ErrorResponse, InferRequest, InferResponse
from semr.inference.service import InferenceService

_REFERENCE = "#/components/schemas/{model}"
_STATUSES = {
    400: "The request does not fit the protocol or the model's signature.",
    404: "There is no such model or version.",
    408: "The body did not arrive in time.",
    413: "The body is too long, or has too many examples.",
    415: "The body is compressed.",
    500: "The model failed.",
    503: "There is no model yet, or there are too many requests.",
    504: "The model did not answer in time.",
}
# Rows of zeros of a model with a larger input would fill the page.
_MOST_ELEMENTS = 1024


def describe_inference(app: FastAPI, service: InferenceService) -> None:
    """Add the paths to infer to the description of `app`, with an example that the model of `service` takes."""
    described = app.openapi

    def with_inference() -> dict[str, Any]:
        schema = described()
        if not any(path.endswith("/infer") for path in schema["paths"]):
            models = [(model, mode) for model, mode in _MODELS]
            _, definitions = models_json_schema(models, ref_template=_REFERENCE)
            schema["components"]["schemas"].update(definitions["$defs"])
            for versioned in (False, True):
                path = "/v2/models/{model}" + ("/versions/{version}" if versioned else "") + "/infer"
                schema["paths"][path] = {"post": _operation(versioned)}
        _set_example(schema, service)
        return schema

    app.openapi = with_inference  # type: ignore[method-assign]


_MODELS: tuple[tuple[Any, Any], ...] = (
    (InferRequest, "validation"),
    (InferResponse, "serialization"),
    (ErrorResponse, "serialization"),
)


def _operation(versioned: bool) -> dict[str, Any]:
    names = ["model", "version"] if versioned else ["model"]
    responses: dict[str, Any] = {
        str(status): {"description": text, "content": _content("ErrorResponse")} for status, text in _STATUSES.items()
    }
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    responses["200"] = {
        "description": "Predictions; with raw tensors behind the JSON when the request asks for binary data.",
        "content": {**_content("InferResponse"), **binary},
    }
    return {
        "summary": "Infer",
        "operationId": "infer_version" if versioned else "infer",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "title": name.title()}}
            for name in names
        ],
        "requestBody": {"required": True, "content": _content("InferRequest")},
        "responses": dict(sorted(responses.items())),
    }


def _content(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model)}}}


def _set_example(schema: dict[str, Any], service: InferenceService) -> None:
    try:
        loaded = service.current()
    except HttpError:
        return
    inputs: list[dict[str, Any]] = []
    for tensor in loaded.inputs:
        shape = [1 if size < 0 else size for size in tensor.shape]
        size = 1
        for each in shape:
            size *= each
        if size > _MOST_ELEMENTS:
            return
        zero: object = {"BOOL": False, "BYTES": ""}.get(tensor.datatype, 0)
        inputs.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": [zero] * size})
    for path, item in schema["paths"].items():
        if path.endswith("/infer"):
            item["post"]["requestBody"]["content"]["application/json"]["example"] = {"inputs": inputs}
            for parameter in item["post"]["parameters"]:
                parameter["example"] = loaded.ref.name if parameter["name"] == "model" else loaded.ref.version
