"""Live traffic for the served QoE forecaster: windows of made-up cells in the order of time, and what came, some time later.

semr traffic qoe --rate 5 --windows 20 --regime-at 0 --seconds 60
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from semr.deployment.choice import deployment_target
from semr.errors import DependencyUnavailableError, InvalidInputError, SemrError
from semr.inference.client import InferenceClient, InferenceError
from workflow_examples.qoe.features import WindowPlan, clean, cut
from workflow_examples.qoe.synthetic import Synthetic

Windows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """Windows (rows, steps, columns) and what came (rows, columns), in units of the reports, mixed over cells and times."""

    windows: Windows
    targets: Windows

    @classmethod
    def of(cls, made: Synthetic, plan: WindowPlan, seed: int = 0) -> Pool:
        """All windows of made-up reports; of those with another regime, the windows that lie in it."""
        reports = pa.Table.from_batches(list(made.batches()))
        first = reports["time"][0].value
        begins = first + (made.regime_at or 0) * int(reports["period"][0].as_py()) * 1000
        windows, targets = [], []
        for cell in pc.unique(reports["cell"]).to_pylist():
            series = clean(reports.filter(pc.equal(reports["cell"], cell)), plan.columns)
            found = cut(series, plan)
            starts = found.starts[series.times[found.starts] > begins]
            windows.append(series.values[starts[:, None] + np.arange(plan.steps)])
            targets.append(series.values[starts + plan.steps - 1 + plan.horizon])
        order = np.random.default_rng(seed).permutation(sum(map(len, windows)))
        if not len(order):
            raise InvalidInputError("There is no window in these reports: make more of them.")
        return cls(np.concatenate(windows).astype(np.float32)[order], np.concatenate(targets).astype(np.float32)[order])


@dataclass
class Tally:
    """What was sent: requests, how many failed, windows with known truth, how many were forecast well enough, versions."""

    sent: int = 0
    failed: int = 0
    told: int = 0
    right: int = 0
    versions: dict[str, int] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of the forecasts within the model's tolerance, NaN before any truth is known."""
        return self.right / self.told if self.told else float("nan")

    def __str__(self) -> str:
        versions = ", ".join(f"version {name}: {count}" for name, count in sorted(self.versions.items()))
        answered = versions or "none answered"
        return f"{self.sent} requests, {self.failed} failed, {self.accuracy:.3f} within tolerance ({answered})"


def send(
    url: str,
    model: str,
    pool: Pool,
    *,
    requests: int,
    windows: int = 1,
    rate: float = 0.0,
    delay: int = 3,
    start: int = 0,
) -> Tally:
    """Send requests one after the other, going round the pool; the truth of one follows `delay` requests later.

    Args:
        url: what stands before `/v2`.
        model: its name.
        pool: what is sent.
        requests: how many.
        windows: in each of them.
        rate: requests a second at most; 0: as fast as they are answered.
        delay: requests between a forecast and its truth.
        start: row of the pool to begin with.
    """
    tally = Tally()
    waiting: deque[tuple[str, Windows]] = deque()
    with InferenceClient(url, model, timeout_seconds=20.0) as client:
        name = client.metadata().inputs[0].name
        due = time.monotonic()
        for index in range(requests):
            rows = (start + index * windows + np.arange(windows)) % len(pool.windows)
            tally.sent += 1
            try:
                answer = client.infer({name: pool.windows[rows]})
                tally.versions[answer.version] = tally.versions.get(answer.version, 0) + 1
                waiting.append((answer.prediction_id, pool.targets[rows]))
            except (InferenceError, DependencyUnavailableError):
                tally.failed += 1
            if len(waiting) > delay:
                _tell(client, waiting, tally)
            if rate:
                due += 1 / rate
                time.sleep(max(0.0, due - time.monotonic()))
        while waiting:
            _tell(client, waiting, tally)
    return tally


def _tell(client: InferenceClient, waiting: deque[tuple[str, Windows]], tally: Tally) -> None:
    token, truth = waiting.popleft()
    tally.right += client.feedback_values(token, truth.tolist())
    tally.told += len(truth)


def main(arguments: list[str] | None = None) -> int:
    """Command line of `semr traffic qoe`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="semr traffic qoe", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qoe", help="registered model and route (default: qoe)")
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second (default: 5)")
    parser.add_argument("--windows", type=int, default=10, help="windows in each request (default: 10)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--cells", type=int, default=12, help="made-up cells (default: 12)")
    parser.add_argument("--seed", type=int, default=1, help="of the cells (default: 1)")
    parser.add_argument("--drift", action="store_true", help="windows of another regime of load")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        if options.rate <= 0 or options.windows < 1 or options.seconds <= 0:
            raise InvalidInputError("--rate and --seconds must be above 0, --windows at least 1.")
        reports = Synthetic().reports
        made = Synthetic(cells=options.cells, seed=options.seed, regime_at=reports // 2 if options.drift else None)
        pool = Pool.of(made, WindowPlan())
        tally = send(
            deployment_target().url(options.model),
            options.model,
            pool,
            requests=max(1, round(options.rate * options.seconds)),
            windows=options.windows,
            rate=options.rate,
        )
    except SemrError as error:
        print(f"traffic: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    console.print(str(tally), highlight=False)
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
