"""A limit on rows per second."""

from __future__ import annotations

import threading
import time


class RowLimit:
    """Lets `rows_per_second` rows pass on average, and what was saved up in `burst_seconds` at once."""

    def __init__(self, rows_per_second: float, burst_seconds: float = 2.0) -> None:
        self._rate = rows_per_second
        self._most = rows_per_second * burst_seconds
        self._saved = self._most
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def take(self, rows: int) -> int:
        """How many of `rows` may pass now."""
        with self._lock:
            now = time.monotonic()
            self._saved = min(self._most, self._saved + (now - self._last) * self._rate)
            self._last = now
            taken = min(rows, int(self._saved))
            self._saved -= taken
            return taken
