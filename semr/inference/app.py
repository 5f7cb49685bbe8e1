"""The HTTP application: Open Inference Protocol V2 for the one model of a holder, feedback on its answers, and `/metrics`.

It knows nothing of its host: Ray Serve and the standalone server give it a holder and a renderer of metrics.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from semr import __version__
from semr.errors import InvalidInputError
from semr.inference.holder import ModelHolder
from semr.inference.metrics import PrometheusSink
from semr.inference.protocol import (
    PREDICTION_ID,
    Array,
    ErrorResponse,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ServerMetadata,
    infer_output,
)
from semr.inference.runtime import LoadedModel
from semr.monitoring.classification import classify
from semr.monitoring.feedback import FeedbackRequest, FeedbackResponse
from semr.monitoring.observer import new_prediction_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerState:
    """What the application serves: the holder of the model and the numbers for `/metrics`."""

    holder: ModelHolder
    prometheus: PrometheusSink


class _HttpError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def create_app(state: Callable[[], ServerState]) -> FastAPI:
    """The application; `state` is called for each request, so that a host can make it after the application."""
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (400, 404, 500, 503)}
    app = FastAPI(title="SEMR inference server", version=__version__, responses=errors)
    _add_error_handlers(app)
    _add_health(app, state)
    _add_model(app, state)
    _add_feedback(app, state)
    return app


def _add_health(app: FastAPI, state: Callable[[], ServerState]) -> None:
    @app.get("/v2")
    async def server_metadata() -> ServerMetadata:
        return ServerMetadata(name="semr", version=__version__, extensions=[])

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        _current(state().holder)
        return {"ready": True}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(state().prometheus.render(), media_type=CONTENT_TYPE_LATEST)


def _add_model(app: FastAPI, state: Callable[[], ServerState]) -> None:
    @app.get("/v2/models/{model}")
    @app.get("/v2/models/{model}/versions/{version}")
    async def model_metadata(model: str, version: str | None = None) -> ModelMetadata:
        loaded = _find(state().holder, model, version)
        return ModelMetadata(
            name=loaded.ref.name,
            versions=[loaded.ref.version],
            platform=loaded.platform,
            inputs=list(loaded.inputs),
            outputs=list(loaded.outputs),
        )

    @app.get("/v2/models/{model}/ready")
    @app.get("/v2/models/{model}/versions/{version}/ready")
    async def model_ready(model: str, version: str | None = None) -> dict[str, bool | str]:
        loaded = _find(state().holder, model, version)
        return {"name": loaded.ref.name, "version": loaded.ref.version, "ready": True}

    @app.post("/v2/models/{model}/infer")
    @app.post("/v2/models/{model}/versions/{version}/infer")
    async def infer(request: InferRequest, model: str, version: str | None = None) -> InferResponse:
        started = time.perf_counter()
        holder = state().holder
        loaded = _find(holder, model, version)
        status, batch_size = 500, None
        try:
            inputs = {tensor.name: tensor.to_array() for tensor in request.inputs}
            batch_size = max((array.shape[0] for array in inputs.values() if array.ndim), default=None)
            outputs = await run_in_threadpool(loaded.predict, inputs)
            response = _response(loaded, request, outputs)
            said = classify(outputs)
            token = new_prediction_id(loaded.ref.name, loaded.ref.version, said)
            response.parameters = {PREDICTION_ID: token}
            status = 200
        except InvalidInputError as error:
            status = 400
            raise _HttpError(status, str(error)) from error
        except Exception as error:
            # Anything that the model's own code raises: the log has the trace, the client a sentence.
            logger.exception("model %s failed on a request", loaded.ref.uri)
            raise _HttpError(status, f"Model {model!r} version {loaded.ref.version} failed on this request.") from error
        finally:
            seconds = time.perf_counter() - started
            holder.metrics.answered(loaded.ref.name, loaded.ref.version, status, seconds, batch_size)
        only_input = next(iter(inputs.values())) if len(inputs) == 1 else None
        holder.observer.observe(loaded.ref.version, token, only_input, said)
        return response


def _add_feedback(app: FastAPI, state: Callable[[], ServerState]) -> None:
    @app.post("/v2/models/{model}/feedback")
    async def feedback(request: FeedbackRequest, model: str) -> FeedbackResponse:
        holder = state().holder
        _check_name(holder, model)
        return _judge(holder, request)

    @app.post("/feedback")
    async def feedback_of_the_only_model(request: FeedbackRequest) -> FeedbackResponse:
        return _judge(state().holder, request)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(_HttpError)
    async def on_error(_: Request, error: _HttpError) -> JSONResponse:
        return JSONResponse({"error": error.message}, status_code=error.status)

    @app.exception_handler(RequestValidationError)
    async def on_invalid_body(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"The request cannot be read: {where}: {first['msg']}."}, status_code=400)


def _current(holder: ModelHolder) -> LoadedModel:
    loaded = holder.current
    if loaded is None:
        reason = next(iter(holder.problems.values()), "it is still loading")
        raise _HttpError(503, f"Model {holder.name!r} is not ready: {reason}.")
    return loaded


def _check_name(holder: ModelHolder, model: str) -> None:
    if model != holder.name:
        raise _HttpError(404, f"There is no model {model!r} here; this server has {holder.name!r}.")


def _judge(holder: ModelHolder, request: FeedbackRequest) -> FeedbackResponse:
    try:
        return holder.observer.feedback(request)
    except InvalidInputError as error:
        raise _HttpError(400, str(error)) from error


def _find(holder: ModelHolder, model: str, version: str | None) -> LoadedModel:
    _check_name(holder, model)
    if version is not None and version in holder.problems:
        raise _HttpError(503, f"Model {model!r} version {version} is not ready: {holder.problems[version]}")
    loaded = _current(holder)
    if version is not None and version != loaded.ref.version:
        raise _HttpError(404, f"Model {model!r} is served in version {loaded.ref.version}, not {version}.")
    return loaded


def _response(loaded: LoadedModel, request: InferRequest, outputs: dict[str, Array]) -> InferResponse:
    wanted = [output.name for output in request.outputs] if request.outputs else list(outputs)
    unknown = sorted(set(wanted) - set(outputs))
    if unknown:
        raise InvalidInputError(f"Model {loaded.ref.name!r} has no output {unknown[0]!r}; it has {sorted(outputs)}.")
    return InferResponse(
        model_name=loaded.ref.name,
        model_version=loaded.ref.version,
        id=request.id,
        outputs=[infer_output(name, outputs[name]) for name in wanted],
    )
