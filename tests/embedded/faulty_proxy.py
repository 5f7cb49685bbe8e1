"""A TCP proxy on loopback that fails at will: what stands between a client and a real server in failure tests."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["pass", "reset", "hang"]
# Whether the server still gets the request whose connection is cut; "reply" loses only its answer.
Cut = Literal["request", "reply"]
_CHUNK = 65536


class FaultyProxy:
    """Forwards every connection to the server at `url` until it is told to fail."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._upstream = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._lock = threading.Lock()
        self._mode: Mode = "pass"
        self._open: set[socket.socket] = set()
        self._muted: set[socket.socket] = set()  # clients that get no answer any more
        self._passages: list[tuple[bytes, Cut]] = []
        self.cuts = 0
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.refuse()

    def refuse(self) -> None:
        """Listen no longer, and reset what is connected: the server is down."""
        # `shutdown` wakes the thread that accepts; closing alone leaves the port open until it returns.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._reset_all()

    def fail(self, mode: Mode) -> None:
        """From now on reset every connection, or let it hang without an answer."""
        with self._lock:
            self._mode = mode
        if mode == "reset":
            self._reset_all()

    def heal(self) -> None:
        """Forward again, on the same port."""
        with self._lock:
            self._mode = "pass"
            self._passages.clear()
        if self._listener.fileno() == -1:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut_at(self, passage: bytes, cut: Cut, times: int = 1) -> None:
        """Cut the next `times` connections in which a client sends `passage`, before or after the server got it."""
        with self._lock:
            self._passages += [(passage, cut)] * times

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
            mode = self._mode
        if mode == "reset":
            self._reset(client)
            return
        try:
            server = socket.create_connection(self._upstream, timeout=10)
        except OSError:
            self._reset(client)
            return
        server.settimeout(None)
        with self._lock:
            self._open.add(server)
        threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
        self._pump_requests(client, server)

    def _pump_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := client.recv(_CHUNK):
                cut = self._cut_for(content)
                if cut == "request":
                    break
                if cut == "reply":
                    self._muted.add(client)
                if self._mode == "hang":
                    continue
                server.sendall(content)
        self._reset(client)
        self._reset(server)

    def _pump(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := server.recv(_CHUNK):
                if client in self._muted:  # the server has done its work now that it answers
                    break
                if self._mode != "hang":
                    client.sendall(content)
        self._reset(client)
        self._reset(server)

    def _cut_for(self, content: bytes) -> Cut | None:
        with self._lock:
            for index, (passage, cut) in enumerate(self._passages):
                if passage in content:
                    del self._passages[index]
                    self.cuts += 1
                    return cut
        return None

    def _reset_all(self) -> None:
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            self._reset(connection)

    def _reset(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
        with contextlib.suppress(OSError):
            # Linger 0: the peer sees a reset, not an orderly end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
