"""Which model version a server answers with: switched between two requests, kept when the next one cannot be loaded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field

from semr.errors import SemrError
from semr.inference.metrics import ServerMetrics
from semr.inference.runtime import LoadedModel, load
from semr.monitoring.observer import Observer

logger = logging.getLogger(__name__)


@dataclass
class ModelHolder:
    """Holds the current version of the model `name`; a request takes `current` once and keeps it to its end.

    `observer` is told about a version before the first request reaches it; one that only counts is made by default.
    """

    name: str
    metrics: ServerMetrics
    current: LoadedModel | None = None
    watched_by: InitVar[Observer | None] = None
    #: Loads a version; from the registry by default.
    loader: Callable[[str], LoadedModel] | None = None
    observer: Observer = field(init=False, repr=False)
    #: Reason by version of the last switch that failed; empty once a switch has succeeded.
    problems: dict[str, str] = field(default_factory=dict)
    #: The error of the last switch, None when it succeeded.
    failure: SemrError | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self, watched_by: Observer | None) -> None:
        self.observer = watched_by or Observer(self.name, self.metrics.sinks)

    def switch(self, version_or_alias: str) -> bool:
        """Load a version beside the current one and serve it; on failure keep the current one and say why.

        Blocks while the model loads; call it from a thread. Returns whether the version is served now. It never raises a
        `SemrError`: in Ray Serve an exception here would end the replica that still answers well.
        """
        with self._lock:
            try:
                loaded = self.loader(version_or_alias) if self.loader else load(self.name, version_or_alias)
            except SemrError as error:
                logger.error("model %s version %s not switched to: %s", self.name, version_or_alias, error)
                self.problems, self.failure = {version_or_alias: str(error)}, error
                self.metrics.load_failed(self.name, version_or_alias)
                return False
            self.observer.watch(loaded.ref)
            before = self.current.ref.version if self.current else None
            self.current, self.problems, self.failure = loaded, {}, None
            self.metrics.switched(self.name, loaded.ref.version, before)
            return True
