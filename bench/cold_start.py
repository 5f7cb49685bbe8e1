"""Cold start of the embedded stack: from `semr up` in an empty folder to every health check passed."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.measure import Measurement
from semr.stack import control
from semr.stack.status import StackStatus

GOAL_SECONDS = 20.0


def measure(runs: int) -> list[Measurement]:
    """Bring `runs` new stacks up and down, one after the other; also tells when each service was healthy."""
    totals: list[float] = []
    services: dict[str, list[float]] = {}
    downs: list[float] = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="semr-bench-") as parent:
            folder = Path(parent, ".semr")
            healthy: dict[str, float] = {}
            started = time.perf_counter()

            def note(status: StackStatus, healthy: dict[str, float] = healthy, started: float = started) -> None:
                for service in status.services:
                    if service.state.value == "healthy":
                        healthy.setdefault(service.name, time.perf_counter() - started)

            try:
                control.up(folder, progress=note)
                totals.append(time.perf_counter() - started)
            finally:
                stopping = time.perf_counter()
                control.down(folder)
                downs.append(time.perf_counter() - stopping)
            for name, seconds in healthy.items():
                services.setdefault(name, []).append(seconds)
    return [
        Measurement("stack up, all healthy", totals, GOAL_SECONDS),
        *(Measurement(f"  {name} healthy", seconds) for name, seconds in services.items()),
        Measurement("stack down", downs),
    ]
