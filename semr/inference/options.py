"""How a model server behaves: limits, waiting times, threads. Where services are stands in `semr.settings`.

Every field is an environment variable `SEMR_INFERENCE_<FIELD>`, in both hosts; the command line of the alone host
overrides them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from semr.errors import SettingsError

ENV_PREFIX = "SEMR_INFERENCE_"


class ServerOptions(BaseSettings):
    """Options of one server process.

    Attributes:
        runtime: `auto` takes ONNX Runtime where a model has an ONNX form or can be converted, and its own framework
            otherwise; `onnx` insists on the first, `native` on the second.
        threads: threads of a model's computing; 0 takes the cores that the process may use.
        batching: whether requests that wait at the same time share a call of the model.
        batch_rows: most rows of a call that several requests share.
        batch_wait_ms: longest that a request waits for others to share a call with, in milliseconds, and only while the
            rate of requests makes another one likely within that time.
        inline_ms: calls expected to be shorter than this run between two requests, longer ones beside them in a thread.
        queue: requests that may be in the server at once; further ones get 503.
        request_rows: most rows of a request; more get 413.
        body_bytes: most bytes of a request's body; more get 413.
        timeout_s: longest that a request waits for its answer, in seconds; then it gets 504.
        body_timeout_s: longest that a client may take to send a body, in seconds; then it gets 408.
        grace_s: longest that requests in flight are waited for when the server is told to stop, in seconds.
        access_log: whether every request is logged, as a line of JSON on standard output.
        extensions: modules that add paths of their own to the application; see `semr.inference.app`.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    runtime: Literal["auto", "onnx", "native"] = "auto"
    threads: int = Field(default=0, ge=0)
    batching: bool = True
    batch_rows: int = Field(default=64, ge=1)
    batch_wait_ms: float = Field(default=2.0, ge=0, le=1000)
    inline_ms: float = Field(default=2.0, ge=0)
    queue: int = Field(default=256, ge=1)
    request_rows: int = Field(default=4096, ge=1)
    body_bytes: int = Field(default=32_000_000, ge=1)
    timeout_s: float = Field(default=30.0, gt=0)
    body_timeout_s: float = Field(default=30.0, gt=0)
    grace_s: float = Field(default=30.0, ge=0)
    access_log: bool = False
    extensions: tuple[str, ...] = ()


def load_options(**overrides: object) -> ServerOptions:
    """The options of the environment with `overrides`; an override of None is none.

    Raises:
        SettingsError: naming the variable or option that cannot be used.
    """
    try:
        return ServerOptions(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ENV_PREFIX + str(first["loc"][0]).upper()
        raise SettingsError(f"{name} cannot be used: {first['msg']}.") from error


@lru_cache(maxsize=1)
def get_options() -> ServerOptions:
    """The options of this process, read once; `get_options.cache_clear()` makes the next call read again."""
    return load_options()
