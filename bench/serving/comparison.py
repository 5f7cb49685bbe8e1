"""Serve the same models in several ways, all up at once, and load them in turn.

Rounds go over the servers one after the other, so that what else the machine does hits all of them alike; the table has the
median of the rounds.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.serving.load import LoadResult, load
from bench.serving.models import BenchModel, save
from bench.serving.ray_host import started_in_ray
from bench.serving.servers import RunningServer, kinds, started
from semr.inference.options import load_options
from semr.inference.runtime import load_version
from semr.inference.source import parse_source

_HEADERS = {"Content-Type": "application/json"}


def compare(
    models: Sequence[str],
    clients: Sequence[int],
    rounds: int,
    seconds: float,
    console: Console,
    *,
    processes_only: bool = False,
) -> None:
    """Print a table for each of `models`; see `bench.serving.models` for their names.

    Args:
        models: their names.
        clients: closed-loop clients of each load.
        rounds: over all servers.
        seconds: of each load.
        console: gets the tables.
        processes_only: without Ray Serve, whose two clusters take half a core when they have nothing to do.
    """
    with tempfile.TemporaryDirectory(prefix="semr-bench-") as name:
        for model_name in models:
            model = save(Path(name), model_name)
            _measure(model, clients, rounds, seconds, Path(name), console, () if processes_only else (False, True))


def _measure(
    model: BenchModel,
    clients: Sequence[int],
    rounds: int,
    seconds: float,
    folder: Path,
    console: Console,
    ray_hosts: Sequence[bool],
) -> None:
    results: dict[tuple[str, int], list[LoadResult]] = {}
    memory: dict[str, float] = {}
    calls: dict[str, list[float]] = {"onnx": [], "native": []}
    with contextlib.ExitStack() as stack:
        servers: list[RunningServer] = []
        for index, kind in enumerate(kinds(model)):
            place = folder / f"{model.name}-{index}"
            place.mkdir()
            servers.append(stack.enter_context(started(kind, place)))
        for haproxy in ray_hosts:
            place = folder / f"{model.name}-ray-{haproxy}"
            place.mkdir()
            servers.append(stack.enter_context(started_in_ray(model, place, haproxy=haproxy)))
        for _ in range(rounds):
            for runtime, rates in calls.items():
                rates.append(_in_process(model, runtime, seconds))
            for count in clients:
                for server in servers:
                    kind = server.kind
                    result = load("127.0.0.1", server.port, kind.path, kind.body, _HEADERS, count, seconds, folder)
                    results.setdefault((kind.name, count), []).append(result)
                    memory[kind.name] = max(memory.get(kind.name, 0.0), server.memory())
    table = Table(
        "server", "clients", "requests/s", "p50 ms", "p99 ms", "failed", "peak MB", title=model.name, box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for runtime, rates in calls.items():
        table.add_row(f"in process, {runtime}", "1", f"{statistics.median(rates):.0f}", "", "", "", "")
    for (name, count), each in results.items():
        table.add_row(
            name,
            str(count),
            f"{statistics.median(result.rate for result in each):.0f}",
            f"{statistics.median(result.p50 for result in each):.2f}",
            f"{statistics.median(result.p99 for result in each):.2f}",
            str(sum(result.failed for result in each)),
            f"{memory[name]:.0f}",
        )
    console.print(table)


def _in_process(model: BenchModel, runtime: str, seconds: float) -> float:
    """Calls a second of the model with one row, without any server: the limit."""
    source = parse_source(str(model.keras))
    loaded = load_version(source.unregistered, options=load_options(runtime=runtime))
    inputs = {loaded.inputs[0].name: model.example}
    ends, calls = time.perf_counter() + seconds, 0
    while time.perf_counter() < ends:
        loaded.run(inputs)
        calls += 1
    return calls / seconds
