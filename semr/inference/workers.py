"""Threads for calls of a model: made as needed, reused, and never waited for at the end of the process.

`concurrent.futures` joins its threads when Python exits: a model that hangs would keep a server from stopping.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class WorkerThreads:
    """Runs work in daemon threads; as many as there is work at once, which the caller limits."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._made = 0

    def run(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not raise, in a thread that is free."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                self._made += 1
                threading.Thread(target=self._loop, name=f"{self._name}-{self._made}", daemon=True).start()
        self._work.put(work)

    def _loop(self) -> None:
        while True:
            self._work.get()()
            with self._lock:
                self._idle += 1
