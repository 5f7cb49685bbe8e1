"""A web server that ends in order on SIGTERM and Ctrl-C: what is in flight is answered, and the process exits with 0."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import uvicorn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class OrderlyServer(uvicorn.Server):
    """uvicorn, but for this: it would raise the signal again when it is done, which ends the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See `uvicorn.Server`."""
        before = {each: signal.signal(each, self.handle_exit) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
