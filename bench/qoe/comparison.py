"""Feature step and training beside the pattern, in one process on the same data."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from bench.qoe.pattern import train_keras, windows_as_text, windows_from_text
from workflow_examples.qoe.data import Source, open_source, repeated
from workflow_examples.qoe.features import Scaling, Sums, WindowPlan, clean, cut, examples, scaling_of
from workflow_examples.qoe.reports import Reading
from workflow_examples.qoe.synthetic import Synthetic

PLAN = WindowPlan()
_HIDDEN = 64
_BATCH = 256
# The pattern would take hours on all cells at 100 times; its time grows with the rows.
_MOST_PATTERN_ROWS = 150_000


def compare(source: str, scales: tuple[int, ...], runs: int, console: Console) -> None:
    """Print a line for each scale and choice of cells as it is measured, and one on training."""
    opened = open_source(source, Synthetic())
    console.print("| scale | cells | windows | load | features | pattern | times | peak MB |", highlight=False)
    console.print("|---:|---|---:|---:|---:|---:|---:|---:|", highlight=False)
    for scale in scales:
        reports, load = _timed(lambda scale=scale: _load(opened, scale), 1)
        for cells in (["c2/B2"], None):
            chosen = reports.filter(pc.is_in(reports["cell"], pa.array(cells))) if cells else reports
            row = [str(scale), ", ".join(cells) if cells else "all", *_row(chosen, runs)]
            row.insert(3, "" if cells else f"{load:.2f} s")
            console.print(f"| {' | '.join(row)} |", highlight=False)
    console.print(training(runs), highlight=False)


def _row(reports: pa.Table, runs: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        windows, ours = _timed(lambda: _features(reports, Path(folder)), runs)
        theirs = None
        if len(reports) <= _MOST_PATTERN_ROWS:
            values = [clean(each, PLAN.columns).values for each in _by_cell(reports)]
            _, theirs = _timed(lambda: _pattern(values, Path(folder, "windows.csv")), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        f"{windows:,}",
        f"{ours:.3f} s",
        f"{theirs:.2f} s" if theirs is not None else "-",
        f"{theirs / ours:.0f}" if theirs is not None else "-",
        f"{peak:.0f}",
    ]


def training(runs: int) -> str:
    """Windows a second, and error on a fifth, of both ways to train an LSTM of 64 units.

    On made-up reports: the simulator's series are constant, or nearly so, and there are no errors to compare.
    """
    reports = pa.Table.from_batches(list(Synthetic(cells=6).batches()))
    series = [clean(each, PLAN.columns) for each in _by_cell(reports)]
    scaling = scaling_of([Sums.of(each.values) for each in series], PLAN.columns)
    tables = [examples(each, cut(each, PLAN), PLAN, scaling, "c") for each in series]
    inputs = np.concatenate([_matrix(each["window"]).reshape(-1, PLAN.steps, 2) for each in tables])
    targets = np.concatenate([_matrix(each["target"]) for each in tables])
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs, targets = inputs[order], targets[order]
    cut_at = len(inputs) * 4 // 5
    theirs, keras_model = train_keras(inputs[:cut_at], targets[:cut_at], _HIDDEN, seconds=15)
    found = [_train_torch(inputs[:cut_at], targets[:cut_at]) for _ in range(runs)]
    ours = statistics.median(speed for speed, _ in found)
    keras_error = float(np.sqrt(np.mean((keras_model.predict(inputs[cut_at:], verbose=0) - targets[cut_at:]) ** 2)))  # type: ignore[attr-defined]
    error = _error(found[-1][1], inputs[cut_at:], targets[cut_at:])
    return (
        f"training: {ours:,.0f} windows a second, pattern {theirs:,.0f}, {ours / theirs:.0f} times; "
        f"scaled holdout rmse {error:.4f}, pattern {keras_error:.4f}"
    )


def _train_torch(inputs: np.ndarray, targets: np.ndarray) -> tuple[float, object]:
    import torch  # noqa: PLC0415 - takes seconds

    from workflow_examples.qoe.model import ModelConfig, build_model  # noqa: PLC0415

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = build_model(ModelConfig("lstm", hidden=_HIDDEN))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    x, y = torch.from_numpy(inputs.reshape(len(inputs), -1)), torch.from_numpy(targets)
    rows, started = 0, time.perf_counter()
    for _ in range(3):
        for chosen in torch.randperm(len(x)).split(_BATCH):
            optimizer.zero_grad()
            torch.nn.functional.smooth_l1_loss(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
            rows += len(chosen)
    return rows / (time.perf_counter() - started), network


def _error(network: object, inputs: np.ndarray, targets: np.ndarray) -> float:
    import torch  # noqa: PLC0415 - takes seconds

    with torch.inference_mode():
        found = network(torch.from_numpy(inputs.reshape(len(inputs), -1))).numpy()  # type: ignore[operator]
    return float(np.sqrt(np.mean((found - targets) ** 2)))


def _load(source: Source, scale: int) -> pa.Table:
    return pa.Table.from_batches(list(repeated(source, scale, 0.01, Reading())))


def _features(reports: pa.Table, folder: Path) -> int:
    """What the job's tasks do: rates, windows, scaling, Parquet out, and in again as training reads it."""
    series = {each["cell"][0].as_py(): clean(each, PLAN.columns) for each in _by_cell(reports)}
    scaling: Scaling = scaling_of([Sums.of(each.values) for each in series.values()], PLAN.columns)
    count = 0
    for index, (cell, each) in enumerate(series.items()):
        pq.write_table(
            examples(each, cut(each, PLAN), PLAN, scaling, cell), folder / f"{index}.parquet", compression="zstd"
        )
        count += len(pq.read_table(folder / f"{index}.parquet"))
    return count


def _pattern(values: list[np.ndarray], path: Path) -> int:
    count = 0
    for each in values:
        windows_as_text(each, PLAN.steps, path)
        count += len(windows_from_text(path)[0])
    return count


def _by_cell(reports: pa.Table) -> list[pa.Table]:
    names = reports["cell"].combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names.dictionary)))[:-1]
    return [reports.take(pa.array(rows)) for rows in np.split(order, ends)]


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    whole = column.combine_chunks()
    return np.asarray(whole.flatten().to_numpy()).reshape(len(whole), -1)


def _timed(work: Callable[[], Any], runs: int) -> tuple[Any, float]:
    """The last result and the median of the seconds; of several runs the first, which imports, is not counted."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - started)
    times = times[1:] or times
    return result, statistics.median(times)
