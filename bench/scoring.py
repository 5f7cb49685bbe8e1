"""What watching costs a model server: on the request's path, and beside it.

The observer is the server's own, with a reference window, Prometheus' counters and no store. On the path a request hands its
arrays over; binning and counting are done by the observer's thread, whose work is measured as this process's CPU time.
"""

from __future__ import annotations

import time

import numpy as np

from bench.measure import Measurement
from semr.inference.metrics import PrometheusSink, ServerMetrics
from semr.monitoring.baseline import Baseline
from semr.monitoring.classification import Classification
from semr.monitoring.drift import ReferenceWindow
from semr.monitoring.observer import Observer
from semr.registry import ModelVersionRef

_PICTURES = (1, 32)
_RATE = 50
_SECONDS = 3.0
_VERSION = "1"


def measure(runs: int) -> list[Measurement]:
    """Both costs for requests of one and of 32 pictures at 50 requests a second, the rate being kept for 3 s in each run."""
    rng = np.random.default_rng(0)
    pictures = rng.random((1000, 28, 28, 1), dtype=np.float32)
    reference = ReferenceWindow.from_inputs(pictures, "image_moments")
    found = []
    for count in _PICTURES:
        said = Classification(np.zeros(count, np.int64), np.ones(count))
        on_path: list[float] = []
        beside: list[float] = []
        for _ in range(runs):
            observer = _observer(reference)
            calls = round(_RATE * _SECONDS)
            waits = 0.0
            cpu, started = time.process_time(), time.perf_counter()
            for call in range(calls):
                inputs = pictures[rng.integers(0, len(pictures) - count) :][:count]
                before = time.perf_counter()
                observer.observe(_VERSION, "id", inputs, said)
                waits += time.perf_counter() - before
                time.sleep(max(0.0, started + call / _RATE - time.perf_counter()))
            observer.close()
            on_path.append(waits / calls)
            beside.append((time.process_time() - cpu) / calls)
        title = f"{count} picture{'s' if count > 1 else ''}"
        found.append(Measurement(f"request of {title}: on its path", on_path))
        found.append(Measurement(f"request of {title}: CPU in all", beside))
    return found


def _observer(reference: ReferenceWindow) -> Observer:
    metrics = ServerMetrics([PrometheusSink()])
    baseline = Baseline(reference, None, None)
    observer = Observer("bench", metrics.sinks, baseline_of=lambda _: baseline)
    observer.watch(ModelVersionRef("bench", _VERSION, "models:/bench/1", "", {}))
    return observer
