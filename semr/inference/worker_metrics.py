"""`/metrics` of a server of several processes: whichever is asked answers for all.

Each process serves its own text on a Unix socket in a folder that they share; the one that is asked collects them and marks
every sample with the label `worker`. So counters stay counters of one process each, as they are of replicas.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 2.0
_SUFFIX = ".sock"


class WorkerMetrics:
    """The metrics of process `index`, served to the others, and theirs for it.

    Args:
        folder: that all processes of the server share; its path must be short, as those of Unix sockets are.
        index: number of this process.
        render: the text of this process.
    """

    def __init__(self, folder: Path, index: int, render: Callable[[], bytes]) -> None:
        self._folder = folder
        self._index = index
        self._render = render
        path = folder / f"{index}{_SUFFIX}"
        path.unlink(missing_ok=True)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(render())

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="semr-metrics", daemon=True).start()

    def render_all(self) -> bytes:
        """The text of all processes; one that does not answer is left out, as a replica that is down would be."""
        texts = {str(self._index): self._render().decode()}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path.stem not in texts:
                try:
                    texts[path.stem] = _read(path)
                except OSError as error:
                    logger.warning("worker %s does not tell its metrics: %s", path.stem, error)
        return merge(texts).encode()

    def close(self) -> None:
        """Serve no longer."""
        self._server.shutdown()
        self._server.server_close()
        (self._folder / f"{self._index}{_SUFFIX}").unlink(missing_ok=True)


def merge(texts: Mapping[str, str]) -> str:
    """Texts in Prometheus' format by worker as one text, in which samples of a metric stand together as the format wants."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, text in texts.items():
        name = ""
        for line in text.splitlines():
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                head = heads.setdefault(name, [])
                if line not in head:
                    head.append(line)
            elif line:
                samples.setdefault(name, []).append(_with_label(line, worker))
    lines = [line for name, head in heads.items() for line in (*head, *samples.get(name, ()))]
    return "\n".join(lines) + "\n"


def _with_label(line: str, worker: str) -> str:
    # A metric's name has neither braces nor spaces.
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'


def _read(path: Path) -> str:
    parts: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_SECONDS)
        connection.connect(str(path))
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()
