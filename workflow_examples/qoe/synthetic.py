"""Made-up cell measurement reports with the same columns as the simulator's, for any number of cells and reports.

A report covers five minutes. The downlink traffic of a cell is

    level * day * week * (1 + slow) + handovers + bursts + noise,   never below 0,

- `level`: 30 to 70 units a period, of its own for each cell;
- `day`: a main wave and a half-day wave, with a phase of its own, as offices and homes have;
- `week`: less on Saturday and Sunday;
- `slow`: an AR(1) process (coefficient 0.95), the crowd that comes and goes;
- `handovers`: what goes to the next cell of a ring is missing in this one, AR(1) with 0.8;
- `bursts`: one in a hundred periods starts one, which fades by 0.6 a period;
- `noise`: white, since no measurement repeats.

The uplink is 30 per cent of it with noise of its own. Cells fail now and then: no reports for some periods, and counters
that start from 0 again. Single reports get lost too, without touching the counters.

From `regime_at` on the load is another: `regime_level` times as high, with a wave of `regime_period` periods on top, as a new
service would bring that calls home regularly.

The shape is what is published about mobile traffic (day, week, bursts: Xu et al., "Understanding Mobile Traffic Patterns of
Large Scale Cellular Towers in Urban Environment", IEEE/ACM ToN 2017); the numbers are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
from scipy.signal import lfilter

from semr.errors import InvalidInputError
from workflow_examples.qoe.reports import SCHEMA

PERIOD_MILLISECONDS = 300_000
_START = np.datetime64("2026-01-05T00:00:00", "us")  # a Monday
_DAY = 24 * 3600 * 1000 / PERIOD_MILLISECONDS
_BANDS = ("B2", "B13", "N77")
_MOST_CELLS = 10_000
# Periods that are made at once. Part of what a seed means: another number would give other data.
_CHUNK = 1024
# Longest wait for a failed cell, in periods.
_OUTAGE_MEAN = 12.0
_PRB = 273.0

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Synthetic:
    """What to make.

    Attributes:
        cells: number of cells.
        reports: measurement periods; 4,032 are two weeks.
        seed: of all chance; the first reports of a longer series are those of a shorter one.
        regime_at: period from which the load is another; None for never.
        regime_level: factor of the load then.
        regime_period: length of the additional wave in periods, 0 for none.
        outage_probability: that a cell fails in a period.
        loss_probability: that a report gets lost.
    """

    cells: int = 12
    reports: int = 4032
    seed: int = 0
    regime_at: int | None = None
    regime_level: float = 2.5
    regime_period: int = 6
    outage_probability: float = 0.0003
    loss_probability: float = 0.002

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= _MOST_CELLS:
            raise InvalidInputError(f"cells must be in 1 to {_MOST_CELLS}, not {self.cells}.")
        if self.reports < 1 or self.regime_level < 0 or self.regime_period < 0:
            raise InvalidInputError("reports must be at least 1, regime_level and regime_period not negative.")
        for name in ("outage_probability", "loss_probability"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be in 0 to below 1, not {getattr(self, name)}.")

    @property
    def description(self) -> str:
        """For a person."""
        regime = "" if self.regime_at is None else f", another regime from report {self.regime_at}"
        return f"synthetic: {self.cells} cells, {self.reports} reports each, seed {self.seed}{regime}"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The reports in the order of time, as batches of `reports.SCHEMA`."""
        state = _State(self)
        for begin in range(0, self.reports, _CHUNK):
            yield _batch(self, state, begin, min(_CHUNK, self.reports - begin))


def cell_name(index: int) -> str:
    """`c1/B2`, `c1/B13`, `c1/N77`, `c2/B2` and so on."""
    return f"c{index // len(_BANDS) + 1}/{_BANDS[index % len(_BANDS)]}"


def json_lines(batch: pa.RecordBatch) -> Iterator[bytes]:
    """The rows as the simulator writes them: a line for each site and time with its bands."""
    rows = batch.to_pylist()
    reports: dict[tuple[Any, str], list[dict[str, Any]]] = {}
    for row in rows:
        reports.setdefault((row["time"], row["cell"].partition("/")[0]), []).append(row)
    for (time, site), cells in reports.items():
        content = {
            "du-id": 1000 + int(site[1:]),
            "measTimeStampRf": time.isoformat(timespec="milliseconds"),
            "cellMeasReportList": [_cell_of(row) for row in cells],
        }
        yield orjson.dumps({"cellMeasReport": content}) + b"\n"


def _cell_of(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "nrCellIdentity": row["cell"],
        "throughput": row["throughput"],
        "x": 0.0,
        "y": 0.0,
        "prbMeasReport": {
            "availPrbDl": row["availPrbDl"],
            "availPrbUl": row["availPrbUl"],
            "measPeriodPrb": row["period"],
        },
        "pdcpByteMeasReport": {
            "pdcpBytesUl": row["pdcpBytesUl"],
            "pdcpBytesDl": row["pdcpBytesDl"],
            "measPeriodPdcpBytes": row["period"],
        },
    }


@dataclass
class _State:
    """What one chunk leaves to the next; arrays (cells,)."""

    plan: Synthetic
    rng: np.random.Generator = field(init=False)
    level: Values = field(init=False)
    phase: Values = field(init=False)
    filters: dict[str, Values] = field(init=False)
    counters: Values = field(init=False)
    silent: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        cells = self.plan.cells
        self.rng = np.random.default_rng(self.plan.seed)
        self.level = self.rng.uniform(30, 70, cells)
        self.phase = self.rng.uniform(-3, 3, cells) / 24
        self.filters = {name: np.zeros((1, cells)) for name in ("slow", "handover", "burst")}
        self.counters = np.zeros((2, cells))
        self.silent = np.zeros(cells, dtype=np.int64)

    def filtered(self, name: str, impulses: Values, coefficient: float) -> Values:
        """y[t] = coefficient * y[t - 1] + x[t] along the first axis, going on where the last chunk ended."""
        out, self.filters[name] = lfilter([1.0], [1.0, -coefficient], impulses, axis=0, zi=self.filters[name])
        return np.asarray(out)


def _batch(plan: Synthetic, state: _State, begin: int, steps: int) -> pa.RecordBatch:
    load = _load(plan, state, begin)
    uplink = np.maximum(0.0, 0.3 * load + state.rng.normal(0, 1.0, load.shape))
    is_silent = _outages(plan, state)
    is_lost = state.rng.random(load.shape) < plan.loss_probability
    rates = np.stack([load, uplink])
    rates[:, is_silent] = 0.0
    counters = _counters(rates, is_silent, state)
    is_sent = ~(is_silent | is_lost)
    is_sent[steps:] = False
    step, cell = np.nonzero(is_sent)
    used = np.minimum(_PRB, load[step, cell])
    names = pa.array([cell_name(index) for index in range(plan.cells)])
    times = _START + (begin + step) * np.timedelta64(PERIOD_MILLISECONDS, "ms")
    columns = {
        "cell": names.take(pa.array(cell)),
        "time": pa.array(times.astype("datetime64[us]")),
        "period": pa.array(np.full(len(step), PERIOD_MILLISECONDS, dtype=np.int32)),
        "pdcpBytesDl": counters[0][step, cell],
        "pdcpBytesUl": counters[1][step, cell],
        "throughput": load[step, cell] / 100,
        "availPrbDl": np.round(_PRB - used),
        "availPrbUl": np.round(_PRB - 0.3 * used),
    }
    return pa.RecordBatch.from_arrays([pa.array(columns[name]) for name in SCHEMA.names], schema=SCHEMA)


def _load(plan: Synthetic, state: _State, begin: int) -> Values:
    """Downlink units a period, (chunk, cells)."""
    shape, rng = (_CHUNK, plan.cells), state.rng
    periods = np.arange(begin, begin + _CHUNK)[:, None]
    turn = 2 * np.pi * (periods / _DAY + state.phase)
    day = 1 - 0.5 * np.cos(turn) + 0.15 * np.sin(2 * turn)
    week = np.where(periods // _DAY % 7 >= 5, 0.75, 1.0)
    slow = state.filtered("slow", rng.normal(0, 0.05, shape), 0.95)
    moving = state.filtered("handover", rng.normal(0, 2.0, shape), 0.8)
    starts = (rng.random(shape) < 0.01) * rng.exponential(20.0, shape)
    bursts = state.filtered("burst", starts, 0.6)
    # A ring of one or two cells has no neighbour to lose users to.
    handovers = moving - np.roll(moving, 1, axis=1) if plan.cells > 2 else 0.0
    load = state.level * day * week * (1 + slow) + handovers + bursts + rng.normal(0, 3.0, shape)
    if plan.regime_at is not None:
        wave = np.sin(2 * np.pi * periods / plan.regime_period) if plan.regime_period else 0.0
        changed = plan.regime_level * load + 0.6 * plan.regime_level * state.level * wave
        load = np.where(periods >= plan.regime_at, changed, load)
    return np.maximum(0.0, load)


def _outages(plan: Synthetic, state: _State) -> npt.NDArray[np.bool_]:
    """Whether a cell is down, (chunk, cells)."""
    shape = (_CHUNK, plan.cells)
    starts = state.rng.random(shape) < plan.outage_probability
    lengths = state.rng.geometric(1 / _OUTAGE_MEAN, shape)
    # Down until the latest end of all outages that have begun.
    ends = np.where(starts, np.arange(_CHUNK)[:, None] + lengths, 0)
    ends[0] = np.maximum(ends[0], state.silent)
    until = np.maximum.accumulate(ends, axis=0)
    state.silent = np.maximum(0, until[-1] - _CHUNK)
    return np.arange(_CHUNK)[:, None] < until


def _counters(rates: Values, is_silent: npt.NDArray[np.bool_], state: _State) -> Values:
    """Ever-growing sums of the rates (2, chunk, cells), from 0 again after an outage."""
    sums = np.cumsum(rates, axis=1) + state.counters[:, None]
    # While a cell is down its sum stands still; what it was then is taken off all that follows.
    lost = np.maximum.accumulate(np.where(is_silent, sums, 0.0), axis=1)
    counters = sums - lost
    state.counters = counters[:, -1]
    return counters
