"""Threads that do a thing again and again, and whose end is noticed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from semr.errors import SemrError

logger = logging.getLogger(__name__)


class Loop:
    """Calls `step` at least every `seconds`, at once after `wake`, in a daemon thread of its own.

    A `SemrError` is logged once for each new message, and the step is tried again; any other exception ends the thread,
    which `is_alive` tells.
    """

    def __init__(self, name: str, seconds: float, step: Callable[[], object]) -> None:
        self.name = name
        self._seconds = seconds
        self._step = step
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Do the next step now."""
        self._woken.set()

    def stop(self) -> None:
        """Let the step that is under way be the last one; does not wait for it."""
        self._stopping.set()
        self._woken.set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is at work."""
        return self._thread.is_alive()

    def _run(self) -> None:
        last_problem = ""
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self._step()
                last_problem = ""
            except SemrError as error:
                if str(error) != last_problem:
                    last_problem = str(error)
                    logger.warning("%s: %s", self.name, error)
            self._woken.wait(self._seconds)
