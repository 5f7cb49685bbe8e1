"""How a model server's numbers come to Prometheus. The instruments are named once, in `instruments`; sinks export them.

Alone, the server answers `/metrics` itself (`PrometheusSink`). In Ray Serve any replica may answer that path, so each also
reports to Ray, whose agents export every replica's numbers (`RaySink`); the scrape configuration drops Ray's `ray_` prefix,
and rules see the same names from both hosts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from semr.inference.instruments import (
    BATCH_SIZE,
    INSTRUMENTS,
    LATENCY,
    LOAD_FAILURES,
    MODEL_INFO,
    REQUESTS,
    Instrument,
)

Labels = Mapping[str, str]

# Ray does not take 0 for a counter. A series has to be there before its first count, which `increase` would miss otherwise.
_ALMOST_NOTHING = 1e-9
# Ray drops a gauge that was not set in the last two reporting intervals, which are no shorter than 1 s.
_GAUGE_REFRESH_SECONDS = 0.4

Series = tuple[Instrument, tuple[tuple[str, str], ...]]


class Sink(Protocol):
    """Where numbers go."""

    def record(self, instrument: Instrument, value: float, labels: Labels) -> None:
        """Add to a counter (0 makes it appear), set a gauge, or observe in a histogram."""

    def forget(self, labels: Labels) -> None:
        """Export no longer the gauges that have all of these labels."""


class PrometheusSink:
    """A registry of its own, rendered by `render`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._made = {each: self._make(each) for each in INSTRUMENTS}
        self._gauges: set[Series] = set()
        self._lock = threading.Lock()

    def record(self, instrument: Instrument, value: float, labels: Labels) -> None:
        """See `Sink`."""
        child = self._made[instrument].labels(**labels)
        if isinstance(child, Counter):
            child.inc(value)
        elif isinstance(child, Gauge):
            with self._lock:
                self._gauges.add(_series(instrument, labels))
            child.set(value)
        else:
            child.observe(value)

    def forget(self, labels: Labels) -> None:
        """See `Sink`."""
        with self._lock:
            gone = [series for series in self._gauges if set(labels.items()) <= set(series[1])]
            self._gauges.difference_update(gone)
        for instrument, pairs in gone:
            self._made[instrument].remove(*(dict(pairs)[name] for name in instrument.labels))

    def render(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return bytes(generate_latest(self._registry))

    def _make(self, instrument: Instrument) -> Any:  # noqa: ANN401 - prometheus_client's metric types
        common: dict[str, Any] = {"labelnames": instrument.labels, "registry": self._registry}
        if instrument.kind == "counter":
            return Counter(instrument.name, instrument.help, **common)
        if instrument.kind == "gauge":
            return Gauge(instrument.name, instrument.help, **common)
        return Histogram(instrument.name, instrument.help, buckets=instrument.buckets, **common)


class RaySink:
    """Ray's metrics agent of this node; to be made inside a Ray worker."""

    def __init__(self) -> None:
        from ray.util import metrics  # noqa: PLC0415 - only the Ray Serve host has Ray

        self._metrics = metrics
        self._made = {each: self._make(each) for each in INSTRUMENTS}
        self._gauges: dict[Series, float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._refresh_gauges, name="semr-gauges", daemon=True).start()

    def record(self, instrument: Instrument, value: float, labels: Labels) -> None:
        """See `Sink`."""
        made, tags = self._made[instrument], dict(labels)
        if instrument.kind == "counter":
            made.inc(max(value, _ALMOST_NOTHING), tags=tags)
        elif instrument.kind == "gauge":
            with self._lock:
                self._gauges[_series(instrument, labels)] = value
                made.set(value, tags=tags)
        else:
            made.observe(value, tags=tags)

    def forget(self, labels: Labels) -> None:
        """See `Sink`."""
        with self._lock:
            self._gauges = {
                series: value for series, value in self._gauges.items() if not set(labels.items()) <= set(series[1])
            }

    def _refresh_gauges(self) -> None:
        while True:
            time.sleep(_GAUGE_REFRESH_SECONDS)
            with self._lock:
                for (instrument, pairs), value in self._gauges.items():
                    self._made[instrument].set(value, tags=dict(pairs))

    def _make(self, instrument: Instrument) -> Any:  # noqa: ANN401 - Ray's metric types
        if instrument.kind == "counter":
            return self._metrics.Counter(instrument.name, instrument.help, tag_keys=instrument.labels)
        if instrument.kind == "gauge":
            return self._metrics.Gauge(instrument.name, instrument.help, tag_keys=instrument.labels)
        return self._metrics.Histogram(
            instrument.name, instrument.help, boundaries=list(instrument.buckets), tag_keys=instrument.labels
        )


def _series(instrument: Instrument, labels: Labels) -> Series:
    return instrument, tuple(sorted(labels.items()))


class ServerMetrics:
    """The server's view: one call for each thing that happens."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = tuple(sinks)

    def answered(self, model: str, version: str, status: int, seconds: float, batch_size: int | None) -> None:
        """A request to infer was answered after `seconds`; `batch_size` is None when it was not understood."""
        labels = {"model": model, "version": version}
        self._record(REQUESTS, 1, {**labels, "status": str(status)})
        self._record(LATENCY, seconds, labels)
        if batch_size is not None:
            self._record(BATCH_SIZE, batch_size, labels)

    def switched(self, model: str, version: str, before: str | None) -> None:
        """`version` is served from now on in place of `before`."""
        if before is not None and before != version:
            self._record(MODEL_INFO, 0, {"model": model, "version": before})
        self._record(MODEL_INFO, 1, {"model": model, "version": version})

    def load_failed(self, model: str, version: str) -> None:
        """`version` could not be loaded."""
        self._record(LOAD_FAILURES, 1, {"model": model, "version": version})

    def _record(self, instrument: Instrument, value: float, labels: Labels) -> None:
        for sink in self.sinks:
            sink.record(instrument, value, labels)
