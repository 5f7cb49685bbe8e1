"""Live traffic for the served QoE forecaster: windows of made-up cells, and what came, some time later.

    semr traffic qoe --rate 5 --windows 20 --drift --drift-after 30 --seconds 60

See `semr.traffic`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from semr.deployment.choice import deployment_target
from semr.errors import InvalidInputError
from semr.inference.client import InferenceClient
from semr.inference.protocol import Array
from semr.traffic import Drift, OpenLoop, Request, Tally, exit_code_of, show
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
class Traffic(OpenLoop):
    """A running stream of requests, which goes round the pool. `pool` may be changed while it runs.

    Attributes:
        pool: what is sent.
        start: row of the pool to begin with.
    """

    pool: Pool
    start: int = 0

    def draw(self) -> Request:
        """The next windows of the pool."""
        pool = self.pool
        rows = (self.start + np.arange(self.rows)) % len(pool.windows)
        self.start += self.rows
        return Request(pool.windows[rows], pool.targets[rows], pool.targets[rows])

    def tell(self, client: InferenceClient, prediction_id: str, told: Array) -> int:
        """The values that came; right is what lies within the model's tolerance, which the server knows."""
        return client.feedback_values(prediction_id, told.tolist())


def send(
    url: str, model: str, pool: Pool, *, requests: int, windows: int = 1, rate: float = 20.0, start: int = 0
) -> Tally:
    """Send so many requests and return when all are answered and have their truth; arguments as `Traffic`."""
    with Traffic(url, model, rate, pool, start, rows=windows, requests=requests) as traffic:
        return traffic.finish()


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
    parser.add_argument("--drift-after", type=float, default=0.0, help="seconds without drift first (default: 0)")
    options = parser.parse_args(arguments)

    def work() -> Tally:
        usual = Synthetic(cells=options.cells, seed=options.seed)
        traffic = Traffic(
            deployment_target().url(options.model),
            options.model,
            options.rate,
            Pool.of(usual, WindowPlan()),
            rows=options.windows,
            seed=options.seed,
        )
        if not options.drift:
            return show(traffic, options.seconds)
        changed = Synthetic(cells=options.cells, seed=options.seed, regime_at=usual.reports // 2)
        drifted = Pool.of(changed, WindowPlan())

        def begin() -> str:
            traffic.pool = drifted
            return "another regime of load"

        return show(traffic, options.seconds, Drift(options.drift_after, begin))

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
