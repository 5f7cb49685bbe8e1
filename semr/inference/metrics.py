"""How a model server's numbers come to Prometheus. The instruments are named once, in `instruments`; sinks export them.

Alone, the server answers `/metrics` itself (`PrometheusSink`). In Ray Serve any replica may answer that path, so each also
reports to Ray, whose agents export every replica's numbers (`RaySink`); the scrape configuration drops Ray's `ray_` prefix,
and rules see the same names from both hosts.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

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
    """Numbers of this process, rendered by `render`.

    They are kept in plain dictionaries and become `prometheus_client`'s metrics when they are asked for: its own counters
    take a few microseconds for each of a request's numbers.
    """

    def __init__(self) -> None:
        self._values: dict[Instrument, dict[tuple[str, ...], float]] = {each: {} for each in INSTRUMENTS}
        self._histograms: dict[Instrument, dict[tuple[str, ...], _Counts]] = {each: {} for each in INSTRUMENTS}
        self._read: dict[Instrument, dict[tuple[str, ...], Callable[[], float]]] = {each: {} for each in INSTRUMENTS}
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def record(self, instrument: Instrument, value: float, labels: Labels) -> None:
        """See `Sink`."""
        key = tuple([labels[name] for name in instrument.labels])
        with self._lock:
            if instrument.kind == "histogram":
                counts = self._histograms[instrument].get(key)
                if counts is None:
                    counts = self._histograms[instrument][key] = _Counts([0] * (len(instrument.buckets) + 1))
                counts.buckets[bisect_left(instrument.buckets, value)] += 1
                counts.sum += value
            elif instrument.kind == "counter":
                values = self._values[instrument]
                values[key] = values.get(key, 0.0) + value
            else:
                self._values[instrument][key] = value

    def read_when_asked(self, instrument: Instrument, labels: Labels, read: Callable[[], float]) -> None:
        """A gauge whose value is read when the numbers are rendered: for what changes more often than anybody looks."""
        with self._lock:
            self._read[instrument][tuple([labels[name] for name in instrument.labels])] = read

    def forget(self, labels: Labels) -> None:
        """See `Sink`."""
        with self._lock:
            for instrument, values in self._values.items():
                if instrument.kind == "gauge" and set(labels) <= set(instrument.labels):
                    for key in [each for each in values if _has(instrument, each, labels)]:
                        del values[key]

    def render(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """For `prometheus_client`: the numbers as its metrics."""
        with self._lock:
            values = {
                each: {**found, **{key: read() for key, read in self._read[each].items()}}
                for each, found in self._values.items()
            }
            histograms = {
                each: {key: (list(counts.buckets), counts.sum) for key, counts in found.items()}
                for each, found in self._histograms.items()
            }
        for instrument in INSTRUMENTS:
            common: dict[str, Any] = {"labels": instrument.labels}
            if instrument.kind == "histogram":
                family = HistogramMetricFamily(instrument.name, instrument.help, **common)
                bounds = [*(floatToGoString(bound) for bound in instrument.buckets), "+Inf"]
                for key, (counts, total) in histograms[instrument].items():
                    family.add_metric(key, list(zip(bounds, accumulate(counts), strict=True)), sum_value=total)
            else:
                kind = CounterMetricFamily if instrument.kind == "counter" else GaugeMetricFamily
                family = kind(instrument.name, instrument.help, **common)
                for key, value in values[instrument].items():
                    family.add_metric(key, value)
            yield family


@dataclass
class _Counts:
    """Values of a histogram in each of its buckets, the last one being what exceeds all bounds, and their sum."""

    buckets: list[int]
    sum: float = 0.0


def _has(instrument: Instrument, key: tuple[str, ...], labels: Labels) -> bool:
    return all(key[instrument.labels.index(name)] == value for name, value in labels.items())


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
