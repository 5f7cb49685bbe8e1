"""Errors as HTTP answers: a status, and a body `{"error": sentence}`."""

from __future__ import annotations

from semr.errors import SemrError


class HttpError(SemrError):
    """A request is answered with `status` and `message`; `headers` go with it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}

    def __reduce__(self) -> tuple[type, tuple[int, str, dict[str, str]]]:
        return (type(self), (self.status, self.message, self.headers))


def overloaded(limit: int) -> HttpError:
    """503: more requests at once than the server takes. A second later some of them are answered."""
    return HttpError(
        503, f"The server has {limit} requests at once, which is its limit: try again later.", {"Retry-After": "1"}
    )


def body_too_large(limit: int) -> HttpError:
    """413: the body is longer than the server takes."""
    return HttpError(413, f"The body is longer than {limit} bytes, which is the limit: send fewer examples at once.")


def too_many_rows(rows: int, limit: int) -> HttpError:
    """413: the request has more rows than the server takes."""
    return HttpError(413, f"The request has {rows} examples; at most {limit} are taken: send several requests.")


def body_too_slow(seconds: float) -> HttpError:
    """408: the client did not send its body in time."""
    return HttpError(408, f"The body has not arrived within {seconds:g} s.")


def encoded_body(encoding: str) -> HttpError:
    """415: the body is compressed."""
    return HttpError(415, f"A body with Content-Encoding {encoding!r} is not read: send it uncompressed.")


def timed_out(seconds: float) -> HttpError:
    """504: the model did not answer in time."""
    return HttpError(504, f"The model has not answered within {seconds:g} s.")


def not_post(path: str, method: str) -> HttpError:
    """405: a path that takes POST only."""
    return HttpError(405, f"{path} does not take {method}.", {"Allow": "POST"})
