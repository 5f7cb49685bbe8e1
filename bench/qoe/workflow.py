"""Times of the steps of the QoE workflow at its defaults, of an epoch of training, and the stack's memory meanwhile."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.measure import Measurement, Times
from semr.stack.processes import stack_processes
from semr.stack.state import StateFolder, read_identity
from workflow_examples.qoe import pipeline
from workflow_examples.qoe.features import WindowPlan
from workflow_examples.qoe.train import TrainConfig

MODEL = "qoe-bench"
#: Seconds that the whole may take, by how often the reports are taken.
GOALS = {1: 60.0, 100: 300.0}
# Looking takes a tenth of a second.
_LOOK_SECONDS = 3.0


@dataclass
class _Memory:
    """Megabytes of the stack and this process."""

    peak: float = 0.0


def measure(runs: int, source: str, scale: int, cells: tuple[str, ...], stack: Path) -> list[Measurement]:
    """Run the workflow `runs` times.

    Args:
        runs: how often.
        source: file of cell measurement reports.
        scale: how often they are repeated.
        cells: names of cells, all when empty.
        stack: state folder of the stack that the settings name.
    """
    times = Times()
    peaks: list[float] = []
    whole: dict[str, list[float]] = {}
    for _ in range(runs):
        with _watched_memory(stack) as memory:
            started = time.perf_counter()
            verdict = _run(times, source, scale, cells)
            whole.setdefault(verdict, []).append(time.perf_counter() - started)
        peaks.append(memory.peak)
    return [
        *(Measurement(name, seconds) for name, seconds in times.seconds.items()),
        *(Measurement(f"qoe_train, all steps: {each}", spent, GOALS.get(scale)) for each, spent in whole.items()),
        Measurement("peak memory of the stack", peaks, unit="MB"),
    ]


def _run(times: Times, source: str, scale: int, cells: tuple[str, ...]) -> str:
    """The steps of `wf.qoe_train`; returns its verdict."""

    def note(line: str) -> None:
        if found := re.search(r"\bepoch \d+/.*\((\d+\.\d+) s\)", line):
            times.add("  an epoch", float(found[1]))

    raw = times.timed("ingest", pipeline.ingest, source, scale, _quiet)
    dataset = times.timed("prepare", pipeline.prepare, raw, cells, WindowPlan(), _quiet)
    run_id = times.timed("train", pipeline.train, TrainConfig(dataset), note)
    if not times.timed("evaluate", pipeline.evaluate, run_id, dataset, _quiet).is_better:
        return "declined"
    model = times.timed("register", pipeline.register, run_id, MODEL, dataset)
    deployment = times.timed("deploy", pipeline.deploy, model, replicas=1)
    times.timed("verify", pipeline.verify, deployment, dataset)
    return "promoted"


@contextmanager
def _watched_memory(stack: Path) -> Iterator[_Memory]:
    """Watches the memory of the stack's processes and this one; shared pages count in proportion."""
    identity = read_identity(StateFolder.at(stack))
    assert identity is not None, f"{stack} is no state folder"
    memory = _Memory()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            now = 0.0
            for process in [psutil.Process(os.getpid()), *stack_processes(identity.stack_id, Path(identity.runtime))]:
                try:
                    now += process.memory_full_info().pss / 1e6
                except psutil.Error:
                    continue  # it has ended meanwhile
            memory.peak = max(memory.peak, now)
            is_over.wait(_LOOK_SECONDS)

    watching = threading.Thread(target=watch, name="memory")
    watching.start()
    try:
        yield memory
    finally:
        is_over.set()
        watching.join()


def _quiet(_: str) -> None:
    """The jobs' logs are not what is measured."""
