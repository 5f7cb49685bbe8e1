"""A load of closed-loop clients in a process of its own: each sends its next request when it has the answer to the last.

`python -m bench.serving.load HOST PORT PATH BODY_FILE CLIENTS SECONDS [HEADER...]` prints a line of JSON. It writes the same
bytes again and again and parses answers in C, so that it takes as little as it can of the cores that the server runs on.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import httptools
import numpy as np
import uvloop

_WARM_UP_SECONDS = 1.0


@dataclass(frozen=True)
class LoadResult:
    """What the clients saw after the warm-up.

    Attributes:
        requests: answered with 200.
        failed: answered otherwise, or not at all.
        rate: answered requests a second.
        p50, p99: milliseconds to an answer.
    """

    requests: int
    failed: int
    rate: float
    p50: float
    p99: float


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, clock: _Clock) -> None:
        self._request = request
        self._clock = clock
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, _: Exception | None) -> None:
        if time.perf_counter() < self._clock.ends:
            self._clock.failed += 1

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        if now >= self._clock.begins:
            if self._parser.get_status_code() == 200:
                self._clock.times.append(now - self._sent)
            else:
                self._clock.failed += 1
        if now >= self._clock.ends:
            self._transport.close()
            return
        # A parser may not be replaced from within; the loop's next turn does it.
        asyncio.get_running_loop().call_soon(self._again)

    def _again(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)


class _Clock:
    def __init__(self, seconds: float) -> None:
        self.begins = time.perf_counter() + _WARM_UP_SECONDS
        self.ends = self.begins + seconds
        self.times: list[float] = []
        self.failed = 0


async def _run(host: str, port: int, request: bytes, clients: int, seconds: float) -> LoadResult:
    loop = asyncio.get_running_loop()
    clock = _Clock(seconds)
    for _ in range(clients):
        await loop.create_connection(lambda: _Client(request, clock), host, port)
    await asyncio.sleep(clock.ends - time.perf_counter() + 0.5)
    milliseconds = np.array(clock.times or [float("nan")]) * 1000
    p50, p99 = np.percentile(milliseconds, (50, 99))
    return LoadResult(len(clock.times), clock.failed, len(clock.times) / seconds, float(p50), float(p99))


def load(
    host: str, port: int, path: str, body: bytes, headers: dict[str, str], clients: int, seconds: float, folder: Path
) -> LoadResult:
    """Run the clients in a process of their own; `folder` is for the body."""
    file = folder / "body"
    file.write_bytes(body)
    command = [sys.executable, "-m", __name__, host, str(port), path, str(file), str(clients), str(seconds)]
    command += [f"{name}: {value}" for name, value in headers.items()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    return LoadResult(**json.loads(result.stdout))


def main(arguments: list[str]) -> None:
    """Run as the docstring of the module says."""
    host, port, path, file, clients, seconds, *headers = arguments
    body = Path(file).read_bytes()
    head = [f"POST {path} HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(body)}", *headers]
    request = "\r\n".join([*head, "", ""]).encode() + body
    uvloop.install()
    print(json.dumps(asdict(asyncio.run(_run(host, int(port), request, int(clients), float(seconds))))))


if __name__ == "__main__":
    main(sys.argv[1:])
