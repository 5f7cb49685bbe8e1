"""Keeps a holder at the version that its source names: loads it, tries again while MLflow is away, follows an alias."""

from __future__ import annotations

import logging
import threading

from semr.errors import DependencyUnavailableError, SemrError
from semr.inference.holder import ModelHolder
from semr.inference.source import ModelSource
from semr.registry import Registry
from semr.settings import Settings

logger = logging.getLogger(__name__)

# Between tries of a model that is not there: MLflow starts within seconds.
_RETRY_SECONDS = 2.0


class Follower:
    """Runs in a thread of its own from `start` to `close`.

    Args:
        holder: which holds the version.
        source: what it should hold.
        settings: where the registry is.
        poll_seconds: between two looks at the alias; None: it is not followed once its version is loaded.
    """

    def __init__(
        self, holder: ModelHolder, source: ModelSource, settings: Settings, poll_seconds: float | None
    ) -> None:
        self._holder = holder
        self._source = source
        self._settings = settings
        self._poll_seconds = poll_seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="semr-follower", daemon=True)
        # Not tried again: a version does not change, so it would fail the same way.
        self._broken: str | None = None

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def close(self) -> None:
        """Look no more; a load that is under way is not waited for."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            is_settled = self._step()
            if is_settled and self._poll_seconds is None:
                return
            pause = self._poll_seconds if is_settled and self._poll_seconds is not None else _RETRY_SECONDS
            self._closed.wait(pause)

    def _step(self) -> bool:
        """Whether there is nothing to try again soon."""
        try:
            version = self._wanted()
        except SemrError as error:
            self._complain(self._source.selector or "1", str(error))
            return False
        current = self._holder.current.ref.version if self._holder.current else None
        if version == current:
            # The alias is back at what is served: what failed in between is nobody's concern any more.
            self._holder.problems, self._broken = {}, None
            return True
        if version == self._broken:
            return True
        if self._holder.switch(version):
            logger.info("model %s: version %s is served", self._holder.name, version)
            self._broken = None
            return True
        if isinstance(self._holder.failure, DependencyUnavailableError):
            return False
        self._broken = version
        return True

    def _wanted(self) -> str:
        """The version that the source names now."""
        if self._source.selector is None:
            return "1"
        if self._source.alias is None:
            return self._source.selector
        return Registry(self._settings).get(self._source.name, self._source.alias).version

    def _complain(self, key: str, reason: str) -> None:
        if self._holder.problems.get(key) != reason:
            logger.warning("model %s: %s", self._holder.name, reason)
        # With a version in service this is no problem of a version: the server goes on, and the log says so.
        if self._holder.current is None:
            self._holder.problems = {key: reason}
