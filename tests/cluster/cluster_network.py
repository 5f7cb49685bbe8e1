"""What stands for the cluster's network: an HTTP proxy that knows where the name of a service leads.

The KubeRay operator asks Ray's dashboard by the name of its service. In the test bed nothing resolves that name and no Ray
runs in the simulated pod; the proxy passes the request on to a real Ray on this machine, or says 503 where there is none.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "host", "content-length"}


class ClusterNetwork:
    """A running proxy.

    Attributes:
        routes: port of a service or pod to the base URL of the server behind it.
        asked: hosts, with ports, that were asked for.
    """

    def __init__(self) -> None:
        self.routes: dict[int, str] = {}
        self.asked: set[str] = set()
        network = self

        class Handler(BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                status, headers, body = network.ask(
                    self.command, self.path, dict(self.headers.items()), self.rfile.read(length)
                )
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in _HOP_BY_HOP | {"content-encoding", "date", "server"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """URL for HTTP_PROXY."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def ask(self, method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The answer of the server behind `url`."""
        parts = urlsplit(url)
        self.asked.add(parts.netloc)
        base = self.routes.get(parts.port or 80)
        if base is None:
            return 503, {}, b"nothing runs in simulated pods"
        kept = {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            with httpx.Client(timeout=30, trust_env=False) as client:
                answer = client.request(method, base + path, headers=kept, content=body)
        except httpx.HTTPError as error:
            return 502, {}, str(error).encode()
        return answer.status_code, dict(answer.headers), answer.content

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
