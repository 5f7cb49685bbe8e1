"""What a Ray job costs before it does anything: from `submit` to its first line of log, and to its end."""

from __future__ import annotations

import time

from bench.measure import Measurement
from semr.jobs import RayJobs


def measure(runs: int) -> list[Measurement]:
    """Run `runs` jobs that print one line; one before them warms Ray up and is not counted."""
    jobs = RayJobs()
    first_line: list[float] = []
    ended: list[float] = []
    for run in range(runs + 1):
        lines: list[float] = []
        started = time.perf_counter()

        def note(line: str, lines: list[float] = lines) -> None:
            if line == "hello":
                lines.append(time.perf_counter())

        jobs.run("bench.hello_job", on_line=note)
        if run:
            first_line.append(lines[0] - started)
            ended.append(time.perf_counter() - started)
    return [Measurement("job: submit to first line of log", first_line), Measurement("job: submit to end", ended)]
