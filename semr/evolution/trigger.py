"""The HTTP application of the evolution service: Alertmanager's webhook, the controls for people, health and metrics.

Everything under `/api` needs the bearer token. An answer to the webhook means that what was decided is on disk.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.middleware.base import RequestResponseEndpoint

from semr import __version__
from semr.errors import InvalidInputError, SemrError
from semr.evolution.alerts import WebhookMessage
from semr.evolution.audit import AuditTrail
from semr.evolution.conductor import Conductor
from semr.evolution.dependencies import OBJECT_STORE, Dependencies
from semr.evolution.intake import Decision, Intake, NotNowError, Result, UnknownModelError
from semr.evolution.launches import Ledger
from semr.evolution.metrics import EvolutionMetrics
from semr.evolution.policy import Policy

# Alertmanager's message for a few hundred alerts has some hundred kilobytes.
MOST_BYTES = 2 * 1024 * 1024
_MOST_HISTORY = 1000


@dataclass(frozen=True)
class ServiceState:
    """What the application works on.

    Attributes:
        wake: called when there is something to launch.
        stopped_threads: names of the service's threads that have ended though they should not.
        aliases: alias to version of a model; raises `SemrError` when that cannot be told.
    """

    intake: Intake
    policy: Policy
    ledger: Ledger
    conductor: Conductor
    dependencies: Dependencies
    metrics: EvolutionMetrics
    trail: AuditTrail
    token: str
    wake: Callable[[], None]
    stopped_threads: Callable[[], list[str]]
    aliases: Callable[[str], dict[str, str]]


class _Order(BaseModel):
    """Body of a request of a person or a cron run; all of it may be left out."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=500)] = ""
    kind: Literal["human", "cron"] = "human"
    version: Annotated[str, Field(pattern=r"^[0-9]{1,12}$")] | None = None


class _HttpError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def create_app(state: ServiceState) -> FastAPI:
    """The application."""
    app = FastAPI(title="SEMR evolution service", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    _add_error_handlers(app)
    _add_open(app, state)
    guarded = APIRouter(prefix="/api/v1", dependencies=[Depends(_guard(state.token))])
    _add_webhook(guarded, state)
    _add_controls(guarded, state)
    _add_views(guarded, state)
    app.include_router(guarded)

    @app.middleware("http")
    async def count_webhook(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        if request.url.path == "/api/v1/alerts":
            state.metrics.webhook_requests.labels(str(response.status_code)).inc()
        return response

    return app


def health(state: ServiceState) -> dict[str, Any]:
    """What `/healthz` tells: `ok`; `waiting` while a dependency is away; `broken` when the service itself is."""
    stopped = state.stopped_threads()
    problems = state.dependencies.problems
    if state.conductor.backend_problem:
        problems["launcher"] = state.conductor.backend_problem
    return {
        "status": "broken" if stopped else "waiting" if problems else "ok",
        "problems": problems,
        "stopped_threads": stopped,
        "audit_pending_records": state.ledger.pending_count(),
        "active_launches": [launch.to_dict() for launch in state.ledger.active()],
    }


def _add_open(app: FastAPI, state: ServiceState) -> None:
    @app.get("/healthz")
    def healthz() -> JSONResponse:
        report = health(state)
        # Only what a restart would mend is a failure: that a dependency is away is not.
        return JSONResponse(report, status_code=503 if report["status"] == "broken" else 200)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _add_webhook(router: APIRouter, state: ServiceState) -> None:
    @router.post("/alerts")
    async def alerts(request: Request) -> dict[str, Any]:
        body = await _body(request)
        try:
            message = WebhookMessage.model_validate_json(body)
        except ValidationError as error:
            raise _HttpError(400, f"This is not a message of Alertmanager, version 4: {_first(error)}.") from error
        decisions = await run_in_threadpool(_decide, state, message)
        results: dict[str, int] = {}
        for decision in decisions:
            results[decision.result.value] = results.get(decision.result.value, 0) + 1
        launched = [decision.launch_id for decision in decisions if decision.result is Result.LAUNCHED]
        return {"results": results, "launched": launched}


def _decide(state: ServiceState, message: WebhookMessage) -> list[Decision]:
    decisions = []
    # One commit for the whole message: all of it is on disk when Alertmanager gets its answer.
    with state.ledger.transaction():
        for alert in message.alerts:
            decisions.append(state.intake.alert(alert))  # noqa: PERF401 order of effects
    for alert, decision in zip(message.alerts, decisions, strict=True):
        known = decision.result is not Result.IGNORED
        labels = (alert.model, alert.name) if known else ("", "")
        state.metrics.alerts.labels(*labels, decision.result.value).inc()
    if any(decision.result is Result.LAUNCHED for decision in decisions):
        state.wake()
    return decisions


def _add_controls(router: APIRouter, state: ServiceState) -> None:
    @router.post("/models/{model}/retrain", status_code=202)
    async def retrain(model: str, request: Request) -> dict[str, Any]:
        order = await _order(request)
        reason = order.reason or f"asked for ({order.kind})"
        launch = await run_in_threadpool(state.intake.retrain, model, order.kind, reason)
        state.wake()
        return launch.to_dict()

    @router.post("/models/{model}/rollback", status_code=202)
    async def rollback(model: str, request: Request) -> dict[str, Any]:
        order = await _order(request)
        reason = order.reason or "asked for"
        launch = await run_in_threadpool(state.intake.roll_back, model, order.version, reason)
        state.wake()
        return launch.to_dict()

    @router.post("/models/{model}/pause")
    async def pause(model: str, request: Request) -> dict[str, Any]:
        order = await _order(request)
        changed = await run_in_threadpool(state.intake.pause, model, order.reason or "asked for")
        return {"model": model, "paused": True, "changed": changed}

    @router.post("/models/{model}/resume")
    async def resume(model: str, request: Request) -> dict[str, Any]:
        order = await _order(request)
        changed = await run_in_threadpool(state.intake.resume, model, order.reason or "asked for")
        state.wake()
        return {"model": model, "paused": False, "changed": changed}


def _add_views(router: APIRouter, state: ServiceState) -> None:
    @router.get("/models")
    def models() -> dict[str, Any]:
        return {"models": [_view(state, model) for model in state.policy.models]}

    @router.get("/launches/{launch_id}")
    def launch(launch_id: str) -> dict[str, Any]:
        found = state.ledger.find(launch_id)
        if found is None:
            raise _HttpError(404, f"There is no launch {launch_id!r}.")
        return found.to_dict()

    @router.get("/models/{model}/history")
    def history(model: str, limit: int = 100) -> dict[str, Any]:
        if model not in state.policy.models:
            raise UnknownModelError(f"The policy has no model {model!r}, only {', '.join(state.policy.models)}.")
        if not 1 <= limit <= _MOST_HISTORY:
            raise InvalidInputError(f"limit is {limit}: it has to be between 1 and {_MOST_HISTORY}.")
        pending = [record for _, record in state.ledger.pending_records(model)]
        problem = state.dependencies.problems.get(OBJECT_STORE, "")
        stored = [] if problem else state.trail.records(model, limit)
        records = {record.id: record for record in (*stored, *pending)}
        ordered = sorted(records.values(), key=lambda record: (record.time, record.key))[-limit:]
        return {"records": [record.to_dict() for record in ordered], "missing": problem}


def _view(state: ServiceState, model: str) -> dict[str, Any]:
    active = state.ledger.active_launch(model)
    recent = state.ledger.launches(model, limit=1)
    problem = state.dependencies.problems.get("mlflow", "")
    aliases: dict[str, str] | None = None
    if not problem:
        try:
            aliases = state.aliases(model)
        except SemrError as error:
            problem = str(error)
    return {
        "model": model,
        "aliases": aliases,
        "problem": problem,
        "paused": state.ledger.paused(model),
        "active_launch": active.to_dict() if active else None,
        "last_launch": recent[0].to_dict() if recent else None,
        "launches_within_a_day": state.ledger.retrainings_within_a_day(model),
        "max_launches_per_day": state.policy.models[model].max_launches_per_day,
        "alerts": list(state.policy.models[model].alerts),
    }


def _guard(token: str) -> Callable[[Request], None]:
    expected = f"Bearer {token}".encode()

    def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, expected):
            raise _HttpError(401, "The bearer token is missing or wrong: send the installation's SEMR_EVOLUTION_TOKEN.")

    return check


async def _body(request: Request) -> bytes:
    """The body, which is given up as soon as it is too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MOST_BYTES:
        raise _HttpError(413, f"The body has {announced} bytes; at most {MOST_BYTES} are read.")
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > MOST_BYTES:
            raise _HttpError(413, f"The body has more than the {MOST_BYTES} bytes that are read.")
    return bytes(parts)


async def _order(request: Request) -> _Order:
    body = await _body(request)
    try:
        return _Order.model_validate_json(body) if body.strip() else _Order()
    except ValidationError as error:
        raise _HttpError(400, f"The request cannot be read: {_first(error)}.") from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}"[:300] if where else str(first["msg"])[:300]


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(_HttpError)
    async def on_http_error(_: Request, error: _HttpError) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return JSONResponse({"error": error.message}, status_code=error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"The request cannot be read: {where}: {first['msg']}."}, status_code=400)

    @app.exception_handler(SemrError)
    async def on_semr_error(_: Request, error: SemrError) -> JSONResponse:
        if isinstance(error, UnknownModelError):
            status = 404
        elif isinstance(error, NotNowError):
            status = 409
        else:
            status = 400 if isinstance(error, InvalidInputError) else 503
        return JSONResponse({"error": str(error)}, status_code=status)
