"""What a model server counts. The instruments are named once; a sink brings them to Prometheus.

Alone, the server answers `/metrics` itself (`PrometheusSink`). In Ray Serve any replica may answer that path, so each also
reports to Ray, whose agents export every replica's numbers (`RaySink`); the scrape configuration drops Ray's `ray_` prefix,
and rules see the same names from both hosts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


@dataclass(frozen=True)
class Instrument:
    """Name, kind, help text, labels, and for a histogram its upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ("model", "version")
    buckets: tuple[float, ...] = ()


REQUESTS = Instrument(
    "semr_inference_requests_total", "counter", "Requests answered, by HTTP status.", ("model", "version", "status")
)
LATENCY = Instrument(
    "semr_inference_latency_seconds",
    "histogram",
    "Time from a parsed request to its answer, in seconds.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
BATCH_SIZE = Instrument(
    "semr_inference_batch_size", "histogram", "Examples in a request.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
)
MODEL_INFO = Instrument("semr_model_info", "gauge", "1 for the model version that is served.")
LOAD_FAILURES = Instrument(
    "semr_model_load_failures_total", "counter", "Versions that could not be loaded and were not switched to."
)
INSTRUMENTS = (REQUESTS, LATENCY, BATCH_SIZE, MODEL_INFO, LOAD_FAILURES)

Labels = Mapping[str, str]


class Sink(Protocol):
    """Where numbers go."""

    def record(self, instrument: Instrument, value: float, labels: Labels) -> None:
        """Add to a counter, set a gauge, or observe in a histogram."""


class PrometheusSink:
    """A registry of its own, rendered by `render`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._made = {each: self._make(each) for each in INSTRUMENTS}

    def record(self, instrument: Instrument, value: float, labels: Labels) -> None:
        """See `Sink`."""
        child = self._made[instrument].labels(**labels)
        if isinstance(child, Counter):
            child.inc(value)
        elif isinstance(child, Gauge):
            child.set(value)
        else:
            child.observe(value)

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

    def record(self, instrument: Instrument, value: float, labels: Labels) -> None:
        """See `Sink`."""
        made, tags = self._made[instrument], dict(labels)
        if instrument.kind == "counter":
            made.inc(value, tags=tags)
        elif instrument.kind == "gauge":
            made.set(value, tags=tags)
        else:
            made.observe(value, tags=tags)

    def _make(self, instrument: Instrument) -> Any:  # noqa: ANN401 - Ray's metric types
        if instrument.kind == "counter":
            return self._metrics.Counter(instrument.name, instrument.help, tag_keys=instrument.labels)
        if instrument.kind == "gauge":
            return self._metrics.Gauge(instrument.name, instrument.help, tag_keys=instrument.labels)
        return self._metrics.Histogram(
            instrument.name, instrument.help, boundaries=list(instrument.buckets), tag_keys=instrument.labels
        )


class ServerMetrics:
    """The server's view: one call for each thing that happens."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

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
        for sink in self._sinks:
            sink.record(instrument, value, labels)
