"""Load, feature step and training beside the pattern, on the same data; each in a process of its own, for its peak memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from bench.qoe.pattern import train_keras, windows_as_text, windows_from_text
from semr.errors import InvalidInputError
from workflow_examples.qoe.data import MOST_MALFORMED, open_source, repeated
from workflow_examples.qoe.features import Scaling, Sums, WindowPlan, clean, cut, examples, scaling_of
from workflow_examples.qoe.reports import SCHEMA, Reading
from workflow_examples.qoe.synthetic import Synthetic

PLAN = WindowPlan()
#: Names of cells that are measured alone, and () for all.
CHOICES: tuple[tuple[str, ...], ...] = (("c2/B2",), ())
_HIDDEN = 64
_BATCH = 256
# The pattern would take hours on all cells at 100 times; its time grows with the rows.
_MOST_PATTERN_ROWS = 150_000

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """What work came to: its rows or windows, seconds, and the most memory that its process had, libraries included."""

    count: int
    seconds: float
    peak_megabytes: float


def compare(source: str, scales: tuple[int, ...], runs: int, console: Console) -> None:
    """Print a line for each scale and choice of cells as it is measured, and one on training.

    Args:
        source: file of cell measurement reports.
        scales: how often they are repeated.
        runs: counted runs of the feature step and of training in PyTorch; all else takes long enough to run once.
        console: gets the lines, as a table of Markdown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    say("| scale | cells | windows | load | features | pattern | times | peak MB: load | features | pattern |")
    say("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for scale in scales:
        with tempfile.TemporaryDirectory(prefix="semr-bench-") as folder:
            reports = Path(folder, "reports.parquet")
            load = _alone(_load, source, scale, reports)
            for cells in CHOICES:
                row = [str(scale), ", ".join(cells) or "all", *_row(reports, cells, runs, load)]
                say(f"| {' | '.join(row)} |")
    say(f"\n{training(runs)}\n")


def _row(reports: Path, cells: tuple[str, ...], runs: int, load: Cost) -> list[str]:
    ours = _alone(_features, reports, cells, runs)
    theirs = _alone(_pattern, reports, cells) if ours.count <= _MOST_PATTERN_ROWS else None
    return [
        f"{ours.count:,}",
        "" if cells else f"{load.seconds:.2f} s",
        f"{ours.seconds:.3f} s",
        f"{theirs.seconds:.2f} s" if theirs else "-",
        f"{theirs.seconds / ours.seconds:.0f}" if theirs else "-",
        "" if cells else f"{load.peak_megabytes:.0f}",
        f"{ours.peak_megabytes:.0f}",
        f"{theirs.peak_megabytes:.0f}" if theirs else "-",
    ]


def _alone(work: Callable[..., Result], *arguments: object) -> Result:
    """The result of work in a process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def _load(source: str, scale: int, path: Path) -> Cost:
    """What `semr data qoe` does, but for the object store: a stream of reports, checked and shifted, to Parquet."""
    started = time.perf_counter()
    rows = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for batch in repeated(open_source(source, Synthetic()), scale, MOST_MALFORMED, Reading()):
            writer.write_batch(batch)
            rows += batch.num_rows
    return Cost(rows, time.perf_counter() - started, _peak_megabytes())


def _features(path: Path, cells: tuple[str, ...], runs: int) -> Cost:
    reports = _reports(path, cells)
    with tempfile.TemporaryDirectory() as folder:
        windows, seconds = _timed(lambda: _windows(reports, Path(folder)), runs)
    return Cost(windows, seconds, _peak_megabytes())


def _windows(reports: pa.Table, folder: Path) -> int:
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


def _pattern(path: Path, cells: tuple[str, ...]) -> Cost:
    values = [clean(each, PLAN.columns).values for each in _by_cell(_reports(path, cells))]
    started = time.perf_counter()
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        for each in values:
            windows_as_text(each, PLAN.steps, Path(folder, "windows.csv"))
            count += len(windows_from_text(Path(folder, "windows.csv"))[0])
    return Cost(count, time.perf_counter() - started, _peak_megabytes())


def training(runs: int) -> str:
    """Windows a second, and error on a fifth, of both ways to train an LSTM of 64 units.

    On made-up reports: the simulator's series are constant, or nearly so, and there are no errors to compare.
    """
    # TensorFlow and PyTorch do not get along in one process.
    theirs, their_error = _alone(_pattern_training)
    ours, error = _alone(_our_training, runs)
    return (
        f"training: {ours:,.0f} windows a second, pattern {theirs:,.0f}, {ours / theirs:.0f} times; "
        f"scaled holdout rmse {error:.4f}, pattern {their_error:.4f}"
    )


@dataclass(frozen=True)
class _Examples:
    """Scaled windows (rows, steps, columns) and targets (rows, columns), mixed: four fifths to learn from, one to judge."""

    windows: np.ndarray
    targets: np.ndarray
    judged_windows: np.ndarray
    judged_targets: np.ndarray

    @classmethod
    def made_up(cls) -> _Examples:
        reports = pa.Table.from_batches(list(Synthetic(cells=6).batches()))
        series = [clean(each, PLAN.columns) for each in _by_cell(reports)]
        scaling = scaling_of([Sums.of(each.values) for each in series], PLAN.columns)
        tables = [examples(each, cut(each, PLAN), PLAN, scaling, "c") for each in series]
        windows = np.concatenate([_matrix(each["window"]).reshape(-1, PLAN.steps, 2) for each in tables])
        targets = np.concatenate([_matrix(each["target"]) for each in tables])
        order = np.random.default_rng(0).permutation(len(windows))
        learned, judged = np.split(order, [len(order) * 4 // 5])
        return cls(windows[learned], targets[learned], windows[judged], targets[judged])

    def error(self, forecast: np.ndarray) -> float:
        """Root mean squared error of forecasts for the judged windows."""
        return float(np.sqrt(np.mean((forecast - self.judged_targets) ** 2)))


def _pattern_training() -> tuple[float, float]:
    """Windows a second, and error."""
    made = _Examples.made_up()
    speed, model = train_keras(made.windows, made.targets, _HIDDEN, seconds=15)
    return speed, made.error(model.predict(made.judged_windows, verbose=0))  # type: ignore[attr-defined]


def _our_training(runs: int) -> tuple[float, float]:
    """Windows a second in the median, and error."""
    import torch  # noqa: PLC0415 - takes seconds

    from workflow_examples.qoe.model import ModelConfig, build_model  # noqa: PLC0415

    torch.set_num_threads(1)  # as each worker has it
    made = _Examples.made_up()
    x, y = torch.from_numpy(made.windows), torch.from_numpy(made.targets)
    speeds = []
    for _ in range(runs):
        torch.manual_seed(0)
        network = build_model(ModelConfig("lstm", hidden=_HIDDEN))
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        rows, started = 0, time.perf_counter()
        for _ in range(3):
            for chosen in torch.randperm(len(x)).split(_BATCH):
                optimizer.zero_grad()
                torch.nn.functional.smooth_l1_loss(network(x[chosen]), y[chosen]).backward()
                optimizer.step()
                rows += len(chosen)
        speeds.append(rows / (time.perf_counter() - started))
    with torch.inference_mode():
        return statistics.median(speeds), made.error(network(torch.from_numpy(made.judged_windows)).numpy())


def _reports(path: Path, cells: tuple[str, ...]) -> pa.Table:
    reports = pq.read_table(path, filters=pc.is_in(pc.field("cell"), pa.array(cells)) if cells else None)
    if not len(reports):
        raise InvalidInputError(f"There are no reports of {', '.join(cells)}, which this benchmark measures alone.")
    return reports


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
    """The last result and the median of the seconds; one more run comes first, for what is set up once, and is not counted."""
    work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - started)
    return result, statistics.median(times)


def _peak_megabytes() -> float:
    """The most memory that this process has had."""
    # In kB on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
