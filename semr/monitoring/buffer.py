"""A queue between request threads and a worker thread, bounded in bytes: a full one refuses instead of waiting."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

Item = TypeVar("Item")


class BoundedBuffer(Generic[Item]):
    """Holds items of together at most `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._items: list[Item] = []
        self._bytes = 0
        # What the worker waits for: it is woken for that only, since each time it takes the interpreter from requests.
        self._awaited_bytes = 0
        self._closed = threading.Event()
        self._changed = threading.Condition()

    def offer(self, item: Item, size: int) -> bool:
        """Take the item of `size` bytes; False when it does not fit or the buffer is closed. Never waits for the worker."""
        with self._changed:
            if self._closed.is_set() or self._bytes + size > self._most_bytes:
                return False
            self._items.append(item)
            self._bytes += size
            if self._bytes >= self._awaited_bytes:
                self._changed.notify_all()
            return True

    def drain(self, least_bytes: int = 1, timeout_seconds: float | None = None) -> list[Item]:
        """All items, once they have `least_bytes`, the time is over, or the buffer is closed."""
        with self._changed:
            self._awaited_bytes = least_bytes
            self._changed.wait_for(lambda: self._closed.is_set() or self._bytes >= least_bytes, timeout_seconds)
            items, self._items, self._bytes = self._items, [], 0
            return items

    def wait_closed(self, timeout_seconds: float) -> bool:
        """Wait for `close`, at most so long; whether it is closed."""
        return self._closed.wait(timeout_seconds)

    def close(self) -> None:
        """Refuse from now on; the worker gets what is left."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()
