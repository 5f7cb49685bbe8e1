"""The access log: a line of JSON for every request, written by a thread of its own so that no request waits for a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from datetime import datetime, timezone
from typing import BinaryIO, NamedTuple

import orjson

# Lines that wait for a reader who has stopped reading; about 10 MB. Further ones are dropped, and the next line says so.
MOST_LINES = 20_000
_PAUSE_SECONDS = 0.05


class Access(NamedTuple):
    """A request that was answered.

    Attributes:
        seconds: from its first byte to the last one of the answer.
        client: address of the other side, "" when it is not known.
        version: model version that answered, "" for requests that are no inference.
    """

    method: str
    path: str
    status: int
    seconds: float
    request_id: str
    client: str = ""
    version: str = ""


class AccessLog:
    """Writes to `stream`, standard output by default."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream or sys.stdout.buffer
        self._waiting: deque[tuple[float, Access]] = deque()
        self._dropped = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="semr-access-log", daemon=True)
        self._thread.start()

    def add(self, access: Access) -> None:
        """Log the request; never waits."""
        if len(self._waiting) >= MOST_LINES:
            self._dropped += 1
            return
        self._waiting.append((time.time(), access))

    def close(self) -> None:
        """Write what waits; gives up after a second."""
        self._closed.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._closed.wait(_PAUSE_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        lines: list[bytes] = []
        while self._waiting:
            lines.append(_line(*self._waiting.popleft()))
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            lines.append(orjson.dumps({"log": "access", "dropped": dropped}))
        if lines:
            try:
                self._stream.write(b"\n".join(lines) + b"\n")
                self._stream.flush()
            except (OSError, ValueError):  # the reader has gone
                return


def _line(at: float, access: Access) -> bytes:
    content = {
        "log": "access",
        "time": datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds"),
        "method": access.method,
        "path": access.path,
        "status": access.status,
        "milliseconds": round(access.seconds * 1000, 3),
        "request_id": access.request_id,
        "client": access.client,
    }
    if access.version:
        content["model_version"] = access.version
    return orjson.dumps(content)
