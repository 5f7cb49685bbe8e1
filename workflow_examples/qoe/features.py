"""From reports to examples: clean rates of each cell, windows of past steps with the step to be forecast, scaling.

Everything here works on whole columns. `tests/unit/qoe_reference.py` does the same slowly and obviously; both agree exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from semr.errors import InvalidInputError
from workflow_examples.qoe.reports import COUNTERS, MEASURES

Values = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_METADATA_KEY = "windows"
# A series that varies by less, relative to its mean, is a constant with rounding errors, as sums of 2.56 have.
_LEAST_VARIATION = 1e-6


@dataclass(frozen=True)
class WindowPlan:
    """How examples are cut.

    Attributes:
        columns: measures that are input and forecast, see `reports.MEASURES`.
        steps: past steps that the model sees.
        horizon: the forecast step lies so many steps after the last one seen.
        train, validation: shares of the time; the rest is the holdout.
    """

    columns: tuple[str, ...] = COUNTERS
    steps: int = 10
    horizon: int = 1
    train: float = 0.7
    validation: float = 0.1

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in MEASURES]
        if unknown or not self.columns or len(set(self.columns)) != len(self.columns):
            raise InvalidInputError(
                f"columns must be different ones of {', '.join(MEASURES)}, not {list(self.columns)}."
            )
        if self.steps < 1 or self.horizon < 1:
            raise InvalidInputError(f"steps and horizon must be at least 1, not {self.steps} and {self.horizon}.")
        if not (self.train > 0 and self.validation > 0 and self.train + self.validation < 1):
            raise InvalidInputError("train and validation must be above 0, and leave something for the holdout.")


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of each column in the training part; `scale` makes them 0 and 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def scale(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Values (..., columns) in units of the training part's variation."""
        scaled = (np.asarray(values, np.float64) - np.array(self.mean)) / np.array(self.std)
        return np.asarray(scaled, np.float32)

    def unscale(self, values: npt.NDArray[np.floating]) -> Values:
        """The inverse of `scale`, but for its rounding to single precision."""
        return np.asarray(np.asarray(values, np.float64) * np.array(self.std) + np.array(self.mean))


@dataclass(frozen=True)
class Series:
    """The clean rates of one cell.

    Attributes:
        times: microseconds since 1970 (rows,), ascending, of the report that ends the measured period.
        segments: (rows,); rows of one segment follow each other without a gap.
        values: (rows, columns), counters as growth in the period.
    """

    times: Integers
    segments: Integers
    values: Values


@dataclass(frozen=True)
class Sums:
    """Number of values, sum and sum of squares for each column, from which means of several cells come.

    Each sum is exact, as the doubles that add up to it: so scaling does not depend on how reports are spread over tasks.
    """

    count: int
    total: tuple[tuple[float, ...], ...]
    squares: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, values: Values) -> Sums:
        """Sums of (rows, columns)."""
        columns = values.T
        return cls(len(values), tuple(map(_exact_sum, columns)), tuple(_exact_sum(each * each) for each in columns))

    @classmethod
    def of_training(cls, series: Series, training_ends: int) -> Sums:
        """Sums of what lies before the time at which training ends: the only part that scaling may know."""
        return cls.of(series.values[series.times < training_ends])


@dataclass(frozen=True)
class Windows:
    """Examples of one cell: first row of each (examples,) and row of its target (examples,) in the cell's series."""

    starts: Integers
    targets: Integers


def clean(reports: pa.Table, columns: Sequence[str]) -> Series:
    """Rates of one cell from its reports in any order.

    Of several reports for one time the first in the table counts. A report that follows the one before within half to one and
    a half measurement periods gives a row; any other begins a new segment, since what a counter did meanwhile is not
    known. A counter that is less than before has started again from 0.

    Args:
        reports: of one cell, columns as `reports.SCHEMA`.
        columns: measures that are wanted.
    """
    times = reports["time"].cast(pa.int64()).to_numpy()
    order = np.argsort(times, kind="stable")
    times = times[order]
    is_first = np.ones(len(times), dtype=bool)
    is_first[1:] = times[1:] != times[:-1]
    order, times = order[is_first], times[is_first]
    periods = reports["period"].to_numpy()[order].astype(np.int64) * 1000
    elapsed = np.diff(times)
    follows = np.zeros(len(times), dtype=bool)
    follows[1:] = (2 * elapsed >= periods[1:]) & (2 * elapsed <= 3 * periods[1:])
    segments = np.cumsum(~follows)
    values = np.empty((len(times), len(columns)))
    for index, name in enumerate(columns):
        measured = reports[name].to_numpy()[order]
        if name in COUNTERS:
            growth = np.diff(measured, prepend=measured[:1])
            measured = np.where(growth < 0, measured, growth)
        values[:, index] = measured
    return Series(times[follows], segments[follows], values[follows])


def cut(series: Series, plan: WindowPlan) -> Windows:
    """Every window of `plan.steps` rows whose target lies in the same segment."""
    reach = plan.steps - 1 + plan.horizon
    rows = len(series.segments)
    if rows <= reach:
        return Windows(np.zeros(0, np.int64), np.zeros(0, np.int64))
    starts = np.flatnonzero(series.segments[: rows - reach] == series.segments[reach:])
    return Windows(starts, starts + reach)


def split_of(times: Integers, bounds: tuple[int, int]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which targets at `times` (examples,) are in which split; `bounds` begin validation and holdout."""
    validation, holdout = bounds
    return {
        "train": times < validation,
        "validation": (times >= validation) & (times < holdout),
        "holdout": times >= holdout,
    }


def split_bounds(first: int, last: int, plan: WindowPlan) -> tuple[int, int]:
    """Times that begin validation and holdout, when reports go from `first` to `last`."""
    span = last - first
    return first + round(span * plan.train), first + round(span * (plan.train + plan.validation))


def scaling_of(sums: Sequence[Sums], columns: Sequence[str]) -> Scaling:
    """Scaling by the sums of all cells together; a column that does not vary is only moved to 0.

    Raises:
        InvalidInputError: there are no values.
    """
    count = sum(each.count for each in sums)
    if not count:
        raise InvalidInputError(
            "There are no two successive reports in the training part, so there is nothing to learn from."
        )
    means, deviations = [], []
    for index in range(len(columns)):
        mean = math.fsum(part for each in sums for part in each.total[index]) / count
        square = math.fsum(part for each in sums for part in each.squares[index]) / count
        deviation = math.sqrt(max(0.0, square - mean * mean))
        means.append(mean)
        deviations.append(deviation if deviation > _LEAST_VARIATION * max(1.0, abs(mean)) else 1.0)
    return Scaling(tuple(means), tuple(deviations))


def examples(series: Series, windows: Windows, plan: WindowPlan, scaling: Scaling, cell: str) -> pa.Table:
    """Scaled examples of one cell in the order of time, columns as `schema_of`."""
    scaled = scaling.scale(series.values)
    seen = scaled[windows.starts[:, None] + np.arange(plan.steps)].reshape(-1)
    wanted = scaled[windows.targets].reshape(-1)
    schema = schema_of(plan, scaling)
    return pa.Table.from_arrays(
        [
            pa.array([cell], pa.string()).take(pa.array(np.zeros(len(windows.starts), np.int64))),
            pa.array(series.times[windows.targets]).cast(pa.timestamp("us")),
            pa.FixedSizeListArray.from_arrays(pa.array(seen), type=schema.field("window").type),
            pa.FixedSizeListArray.from_arrays(pa.array(wanted), type=schema.field("target").type),
        ],
        schema=schema,
    )


def schema_of(plan: WindowPlan, scaling: Scaling) -> pa.Schema:
    """Columns of examples.

    - `cell`: name; `time`: of the target;
    - `window`: fixed_size_list<float32>[steps * columns], row-major (steps, columns), scaled;
    - `target`: fixed_size_list<float32>[columns], scaled.

    The metadata tell columns, steps, horizon and scaling.
    """
    told = {
        "columns": plan.columns,
        "steps": plan.steps,
        "horizon": plan.horizon,
        "mean": scaling.mean,
        "std": scaling.std,
    }
    return pa.schema(
        [
            ("cell", pa.string()),
            ("time", pa.timestamp("us")),
            ("window", pa.list_(pa.float32(), plan.steps * len(plan.columns))),
            ("target", pa.list_(pa.float32(), len(plan.columns))),
        ],
        metadata={_METADATA_KEY: json.dumps(told)},
    )


def read_metadata(metadata: Mapping[str, str]) -> tuple[WindowPlan, Scaling]:
    """Plan and scaling of a dataset version with these metadata; shares of the splits are not kept."""
    told = json.loads(metadata[_METADATA_KEY])
    plan = WindowPlan(tuple(told["columns"]), told["steps"], told["horizon"])
    return plan, Scaling(tuple(told["mean"]), tuple(told["std"]))


def _exact_sum(values: Values) -> tuple[float, ...]:
    """The sum rounded, then what rounding left out, rounded, and so on until nothing is left: usually after two or three."""
    numbers = values.tolist()
    parts = [math.fsum(numbers)]
    while parts[-1] and math.isfinite(parts[-1]):
        numbers.append(-parts[-1])
        parts.append(math.fsum(numbers))
    return tuple(parts)
