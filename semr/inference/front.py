"""The application that a host runs: inference on a short way of its own, everything else by FastAPI behind it.

A framework's routing, validation and serialization take longer than a small model does. So requests to infer are read and
answered here on plain ASGI; the rest is passed on. Limits of bodies, request ids and the access log are the same for both.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI

from semr.errors import InvalidInputError, SettingsError
from semr.inference import http_errors
from semr.inference.access_log import Access, AccessLog
from semr.inference.codec import HEADER_LENGTH, decode_request, encode_response
from semr.inference.http_errors import HttpError
from semr.inference.protocol import PREDICTION_ID
from semr.inference.runtime import LoadedModel
from semr.inference.service import InferenceService

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

REQUEST_ID = "X-Request-ID"

_REQUEST_ID = REQUEST_ID.lower().encode()
_HEADER_LENGTH = HEADER_LENGTH.lower().encode()
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
# An id that a client gives goes into the log and back to it; a longer one is replaced.
_MOST_ID_CHARACTERS = 128
# Ids of requests that come without one: random for each process, then counted.
_PROCESS = secrets.token_hex(4)
_NUMBERS = itertools.count(1)
#: Status in the log of requests whose client has gone before the answer (nginx' number for it).
_CLIENT_GONE = 499


@dataclass(frozen=True)
class _Target:
    model: str
    version: str | None


@dataclass(frozen=True)
class _Reply:
    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]]
    version: str = ""


class _ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class InferenceApplication:
    """ASGI application: `POST /v2/models/{model}[/versions/{version}]/infer` here, all other paths by `rest`."""

    def __init__(
        self,
        service: InferenceService,
        rest: FastAPI,
        access_log: AccessLog | None = None,
        extend: Callable[[str], None] | None = None,
    ) -> None:
        self._service = service
        self._rest = rest
        self._access_log = access_log
        self._extend = extend
        self._seen: LoadedModel | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        target = _target(scope)
        if target is None:
            await self._pass_on(scope, receive, send, headers, request_id, started)
            return
        try:
            if scope["method"] == "POST":
                reply = await self._infer(target, headers, receive, started)
            else:
                reply = _error(http_errors.not_post(scope["path"], scope["method"]))
        except _ClientGoneError:
            self._log(scope, _CLIENT_GONE, started, request_id)
            return
        await _send(send, reply, request_id)
        self._log(scope, reply.status, started, request_id, reply.version)

    async def _infer(self, target: _Target, headers: dict[bytes, bytes], receive: Receive, started: float) -> _Reply:
        service = self._service
        loaded, rows, status = None, None, 500
        try:
            loaded = service.find(target.model, target.version)
            service.admit()
            try:
                body = await self._body(headers, receive)
                length = headers.get(_HEADER_LENGTH)
                decoded = decode_request(body, length.decode("latin-1") if length is not None else None)
                rows = max((len(array) for array in decoded.inputs.values() if array.ndim), default=None)
                answer = await service.infer(loaded, decoded.inputs, decoded.request, are_finite=decoded.is_json)
                parameters: dict[str, Any] = {PREDICTION_ID: answer.prediction_id}
                try:
                    encoded = encode_response(target.model, answer.version, decoded.request, answer.outputs, parameters)
                except InvalidInputError as error:
                    raise HttpError(500, f"The answer cannot be sent: {error}") from error
                status = 200
            finally:
                service.leave()
        except InvalidInputError as error:
            status = 400
            return _error(HttpError(400, str(error)))
        except HttpError as error:
            status = error.status
            return _error(error)
        except _ClientGoneError:
            status = _CLIENT_GONE
            raise
        except Exception:
            logger.exception("a request to infer failed in the server itself")
            return _error(HttpError(500, "The server failed on this request; its log has the reason."))
        finally:
            if loaded is not None:
                service.count(loaded, status, started, rows)
        if encoded.header_length is None:
            return _Reply(200, encoded.body, [_JSON], answer.version)
        length_header = (_HEADER_LENGTH, str(encoded.header_length).encode())
        return _Reply(200, encoded.body, [_BINARY, length_header], answer.version)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, within the limits of size and time.

        Raises:
            HttpError: 408, 413 or 415.
        """
        options = self._service.state.options
        _check_headers(headers, options.body_bytes)
        async with _Deadline(options.body_timeout_s):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            body: bytes = message.get("body", b"")
            if not message.get("more_body", False):
                if len(body) > options.body_bytes:
                    raise http_errors.body_too_large(options.body_bytes)
                return body
            parts, size = [body], len(body)
            while message.get("more_body", False):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _ClientGoneError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > options.body_bytes:
                    raise http_errors.body_too_large(options.body_bytes)
            return b"".join(parts)

    async def _pass_on(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[bytes, bytes],
        request_id: str,
        started: float,
    ) -> None:
        status = 500
        self._add_extensions()

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (_REQUEST_ID, request_id.encode())]}
            await send(message)

        try:
            if scope["method"] in ("POST", "PUT", "PATCH"):
                body = await self._body(headers, receive)
                await self._rest(scope, _replay(body, receive), note)
            else:
                await self._rest(scope, receive, note)
        except HttpError as error:
            status = error.status
            await _send(send, _error(error), request_id)
        except _ClientGoneError:
            status = _CLIENT_GONE
        finally:
            self._log(scope, status, started, request_id)

    def _add_extensions(self) -> None:
        """Add the paths that the version in service brings along; those of a version before it stay."""
        loaded = self._service.state.holder.current
        if loaded is self._seen or loaded is None or self._extend is None:
            return
        self._seen = loaded
        for name in loaded.extensions:
            try:
                self._extend(name)
            except SettingsError as error:
                logger.warning("%s is served without the paths it brings along: %s", loaded.ref.uri, error)

    def _log(self, scope: Scope, status: int, started: float, request_id: str, version: str = "") -> None:
        if self._access_log is None:
            return
        client = scope.get("client")
        self._access_log.add(
            Access(
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=time.perf_counter() - started,
                request_id=request_id,
                client=str(client[0]) if client else "",
                version=version,
            )
        )


class _Deadline:
    """Cancels its block after `seconds` and turns that into 408; cheaper than `asyncio.wait_for`, which makes a task."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end, task)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._timer.cancel()
        if kind is asyncio.CancelledError and self._is_over:
            raise http_errors.body_too_slow(self._seconds) from error

    def _end(self, task: asyncio.Task[Any] | None) -> None:
        self._is_over = True
        if task is not None:
            task.cancel()


def _target(scope: Scope) -> _Target | None:
    """The model and version of a path to infer, None for another path."""
    path: str = scope["path"]
    if not path.endswith("/infer"):
        return None
    root: str = scope.get("root_path", "")
    parts = path.removeprefix(root).split("/")
    if len(parts) == 5 and parts[1] == "v2" and parts[2] == "models":
        return _Target(parts[3], None)
    if len(parts) == 7 and parts[1] == "v2" and parts[2] == "models" and parts[4] == "versions":
        return _Target(parts[3], parts[5])
    return None


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(_REQUEST_ID, b"").decode("latin-1")
    if given and len(given) <= _MOST_ID_CHARACTERS and given.isascii() and given.isprintable():
        return given
    return f"{_PROCESS}{next(_NUMBERS):08x}"


def _check_headers(headers: dict[bytes, bytes], most_bytes: int) -> None:
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding.lower() not in ("", "identity"):
        raise http_errors.encoded_body(encoding)
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length) > most_bytes:
        raise http_errors.body_too_large(most_bytes)


def _error(error: HttpError) -> _Reply:
    headers = [_JSON, *((name.lower().encode(), value.encode()) for name, value in error.headers.items())]
    # A name that came in by a path may hold half of a surrogate pair, which is no UTF-8.
    text = error.message.encode("utf-8", "replace").decode()
    return _Reply(error.status, orjson.dumps({"error": text}), headers)


async def _send(send: Send, reply: _Reply, request_id: str) -> None:
    headers = [
        *reply.headers,
        (b"content-length", str(len(reply.body)).encode()),
        (_REQUEST_ID, request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what the connection says."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
