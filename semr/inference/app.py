"""The HTTP application: Open Inference Protocol V2 for the one model of a holder, feedback on its answers, and `/metrics`.

It knows nothing of its host: Ray Serve and the standalone server give it a holder and a renderer of metrics.

A module named in `ServerOptions.extensions`, or by the model itself (`semr.extensions` in its metadata), adds paths of its
own: its function `add_routes(app, service)` gets the FastAPI application and the `InferenceService`, by which it finds the
model and infers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from semr import __version__
from semr.errors import InvalidInputError, SettingsError
from semr.inference import openapi
from semr.inference.access_log import AccessLog
from semr.inference.front import InferenceApplication
from semr.inference.holder import ModelHolder
from semr.inference.http_errors import HttpError
from semr.inference.protocol import (
    ErrorResponse,
    ModelList,
    ModelMetadata,
    ModelReady,
    RepositoryEntry,
    RepositoryIndexRequest,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from semr.inference.service import InferenceService, ServerState
from semr.monitoring.feedback import FeedbackRequest, FeedbackResponse

__all__ = ["ServerState", "create_app"]

_EXTENSIONS = ["binary_tensor_data", "model_repository"]
_Responses = dict[int | str, dict[str, Any]]


def create_app(
    state: Callable[[], ServerState], *, extensions: Sequence[str] = (), access_log: AccessLog | None = None
) -> InferenceApplication:
    """The application; `state` is called for each request, so that a host can make it after the application.

    Raises:
        SettingsError: an extension cannot be imported or has no `add_routes`.
    """
    service = InferenceService(state)
    rest = FastAPI(title="SEMR inference server", version=__version__, redirect_slashes=False)
    _add_error_handlers(rest)
    _add_health(rest, service)
    _add_model(rest, service)
    _add_repository(rest, service)
    _add_feedback(rest, service)
    extended: set[str] = set()

    def extend(name: str) -> None:
        if name not in extended:
            _extend(rest, service, name)
            extended.add(name)
            rest.openapi_schema = None  # described anew

    for name in extensions:
        extend(name)
    openapi.describe_inference(rest, service)
    return InferenceApplication(service, rest, access_log, extend)


def _errors(*statuses: int) -> _Responses:
    return {status: {"model": ErrorResponse} for status in statuses}


def _add_health(app: FastAPI, service: InferenceService) -> None:
    @app.get("/v2")
    async def server_metadata() -> ServerMetadata:
        return ServerMetadata(name="semr", version=__version__, extensions=_EXTENSIONS)

    @app.get("/v2/health/live", responses=_errors(503))
    async def live() -> ServerLive:
        service.check_alive()
        return ServerLive()

    @app.get("/v2/health/ready", responses=_errors(503))
    async def ready() -> ServerReady:
        service.current()
        service.check_answering()
        return ServerReady()

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        state = service.state
        # In a thread: with several processes this asks the others.
        text = await run_in_threadpool(state.prometheus.render if state.render is None else state.render)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _add_model(app: FastAPI, service: InferenceService) -> None:
    @app.get("/v2/models")
    async def models() -> ModelList:
        return ModelList(models=[service.state.holder.name])

    @app.get("/v2/models/{model}", responses=_errors(404, 503))
    @app.get("/v2/models/{model}/versions/{version}", responses=_errors(404, 503))
    async def model_metadata(model: str, version: str | None = None) -> ModelMetadata:
        loaded = service.find(model, version)
        return ModelMetadata(
            name=loaded.ref.name,
            versions=[loaded.ref.version],
            platform=loaded.platform,
            inputs=list(loaded.inputs),
            outputs=list(loaded.outputs),
        )

    @app.get("/v2/models/{model}/ready", responses=_errors(404, 503))
    @app.get("/v2/models/{model}/versions/{version}/ready", responses=_errors(404, 503))
    async def model_ready(model: str, version: str | None = None) -> ModelReady:
        loaded = service.find(model, version)
        service.check_answering()
        return ModelReady(name=loaded.ref.name, version=loaded.ref.version)


def _add_repository(app: FastAPI, service: InferenceService) -> None:
    @app.post("/v2/repository/index", responses=_errors(400, 408, 413, 415))
    async def repository_index(request: RepositoryIndexRequest | None = None) -> list[RepositoryEntry]:
        entries = _entries(service.state.holder)
        return [each for each in entries if each.state == "READY"] if request and request.ready else entries


def _entries(holder: ModelHolder) -> list[RepositoryEntry]:
    entries: list[RepositoryEntry] = []
    if holder.current is not None:
        entries.append(RepositoryEntry(name=holder.name, version=holder.current.ref.version, state="READY"))
    entries += [
        RepositoryEntry(name=holder.name, version=version, state="UNAVAILABLE", reason=reason)
        for version, reason in holder.problems.items()
    ]
    return entries or [RepositoryEntry(name=holder.name, version="", state="LOADING")]


def _add_feedback(app: FastAPI, service: InferenceService) -> None:
    @app.post("/v2/models/{model}/feedback", responses=_errors(400, 404, 408, 413, 415))
    async def feedback(request: FeedbackRequest, model: str) -> FeedbackResponse:
        return _judge(service.check_name(model), request)

    @app.post("/feedback", responses=_errors(400, 408, 413, 415))
    async def feedback_of_the_only_model(request: FeedbackRequest) -> FeedbackResponse:
        return _judge(service.state.holder, request)


def _judge(holder: ModelHolder, request: FeedbackRequest) -> FeedbackResponse:
    try:
        return holder.observer.feedback(request)
    except InvalidInputError as error:
        raise HttpError(400, str(error)) from error


def _extend(app: FastAPI, service: InferenceService, name: str) -> None:
    try:
        import_module(name).add_routes(app, service)
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"The extension {name!r} cannot be used: {error}. It has to be a module with `add_routes(app, service)`."
        ) from error


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(HttpError)
    async def on_error(_: Request, error: HttpError) -> JSONResponse:
        return JSONResponse({"error": error.message}, status_code=error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid_body(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"The request cannot be read: {where}: {first['msg']}."}, status_code=400)

    @app.exception_handler(HTTPException)
    async def on_framework_error(request: Request, error: HTTPException) -> JSONResponse:
        sentence = {
            404: f"There is nothing at {request.url.path}: see /docs for what there is.",
            405: f"{request.url.path} does not take {request.method}.",
        }.get(error.status_code, str(error.detail))
        return JSONResponse({"error": sentence}, status_code=error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def on_bug(_: Request, __: Exception) -> JSONResponse:
        # Starlette logs the exception with its trace after this answer.
        return JSONResponse({"error": "The server failed on this request; its log has the reason."}, status_code=500)
