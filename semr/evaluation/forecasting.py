"""Judging forecasts of several series: errors for each, against forecasts that need no model.

A series that does not vary in the holdout is forecast without error by anything that repeats the last value; it is named,
and takes no part in the numbers that compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError
from semr.evaluation.classification import HOLDOUT_ACCURACY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = npt.NDArray[np.floating[Any]]
Strings = npt.NDArray[Any]

HOLDOUT_RMSE = "holdout_rmse"
#: The model, in the places where forecasts have names.
MODEL = "model"
# Of the mean: what varies by less is a constant with the rounding errors of single precision.
_LEAST_VARIATION = 1e-5


@dataclass(frozen=True)
class Errors:
    """Errors of one forecast, in the units of the series; `within` is the share of errors of at most `within_units`."""

    rmse: float
    mae: float
    within: float


@dataclass(frozen=True)
class SeriesErrors:
    """One series of the holdout: its number of examples, whether it is constant, and the errors of each forecast by name."""

    series: str
    column: str
    examples: int
    is_constant: bool
    errors: dict[str, Errors]


@dataclass(frozen=True)
class ForecastReport:
    """What a forecaster does on a holdout.

    Attributes:
        metrics: of the model over all series that vary: `holdout_rmse`, `holdout_mae`, `holdout_within_<units>`,
            `holdout_accuracy` (share within the model's own tolerance), `holdout_rows`, `holdout_constant_series`; and
            `<baseline>_rmse`, `<baseline>_mae` for each baseline.
        by_series: each series and column.
        constant: names of those that do not vary.
        best_baseline: name of the baseline with the least scaled error, "" without any series that varies.
        scores: for each forecast the score of each example that counts (rows,), more is better: minus the mean absolute
            error over the columns in units of their variation.
        within_units: see `Errors`.
    """

    metrics: dict[str, float]
    by_series: tuple[SeriesErrors, ...]
    constant: tuple[str, ...]
    best_baseline: str
    scores: dict[str, npt.NDArray[np.float64]] = field(repr=False)
    within_units: float = 5.0

    def to_dict(self) -> dict[str, Any]:
        """As an artifact: everything but the scores of single examples."""
        content = asdict(self)
        del content["scores"]
        return content

    def table(self) -> str:
        """The series as lines of text."""
        names = [name for name in (MODEL, *self.scores) if self.by_series and name in self.by_series[0].errors]
        names = list(dict.fromkeys(names))
        lines = [f"{'series':<24}{'examples':>9}" + "".join(f"{name + ' rmse':>22}" for name in names)]
        for each in self.by_series:
            title = f"{each.series} {each.column}"
            if each.is_constant:
                lines.append(f"{title:<24}{each.examples:>9}  constant: nothing to forecast")
            else:
                lines.append(f"{title:<24}{each.examples:>9}" + "".join(f"{each.errors[n].rmse:>22.4f}" for n in names))
        return "\n".join(lines)

    def figure(self, title: str) -> Figure:
        """Error of each forecast for each series that varies."""
        from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second, and only the picture needs it

        shown = [each for each in self.by_series if not each.is_constant][:40]
        figure = Figure(figsize=(9, 1.6 + 0.28 * max(1, len(shown))), layout="constrained")
        axes = figure.subplots()
        for name in self.scores:
            axes.plot([each.errors[name].rmse for each in shown], range(len(shown)), "o", label=name)
        axes.set_yticks(range(len(shown)), [f"{each.series} {each.column}" for each in shown], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("root mean squared error")
        axes.set_title(title, fontsize=11)
        if shown:
            axes.legend(fontsize=8)
        return figure


def judge_forecast(
    actual: Values,
    forecasts: Mapping[str, Values],
    series: Strings,
    columns: Sequence[str],
    *,
    tolerance: Sequence[float] | None = None,
    within_units: float = 5.0,
) -> ForecastReport:
    """Compare forecasts with what came.

    Args:
        actual: (rows, columns).
        forecasts: (rows, columns) by name; `model` is the one that is judged, all others are baselines.
        series: name of the series that each row belongs to (rows,).
        columns: names of the columns.
        tolerance: error of each column up to which a forecast counts as right for `holdout_accuracy`.
        within_units: the same for the share that is reported beside the errors, one number for all columns.

    Raises:
        InvalidInputError: shapes differ, there are no rows, a value is not finite, or there is no forecast `model`.
    """
    shape = (len(series), len(columns))
    if MODEL not in forecasts or not len(series) or any(each.shape != shape for each in (actual, *forecasts.values())):
        shapes = {name: each.shape for name, each in {"actual": actual, **forecasts}.items()}
        raise InvalidInputError(
            f"Forecasts need a {MODEL!r} and the shape {shape} with at least one row, not {shapes}."
        )
    if not all(np.isfinite(each).all() for each in (actual, *forecasts.values())):
        raise InvalidInputError("A forecast or an actual value is not a finite number.")
    truth = np.asarray(actual, np.float64)
    misses = {name: np.abs(np.asarray(each, np.float64) - truth) for name, each in forecasts.items()}
    names, index = np.unique(series, return_inverse=True)
    varies = _varies(truth, index, len(names))
    by_series = tuple(
        SeriesErrors(
            str(name),
            column,
            int((index == number).sum()),
            not varies[number, place],
            {label: _errors(miss[index == number, place], within_units) for label, miss in misses.items()},
        )
        for number, name in enumerate(names)
        for place, column in enumerate(columns)
    )
    counts: npt.NDArray[np.bool_] = np.take(varies, index, axis=0)
    is_scored = counts.any(axis=1)
    scores = _scores(misses, counts, np.asarray(is_scored), truth)
    baselines = [name for name in forecasts if name != MODEL]
    best = max(baselines, key=lambda name: float(scores[name].mean())) if baselines and is_scored.any() else ""
    metrics = {
        "holdout_rows": float(len(series)),
        "holdout_constant_series": float((~varies).sum()),
        **_metrics(misses, counts, within_units),
    }
    if tolerance is not None and is_scored.any():
        right = (misses[MODEL] <= np.asarray(tolerance)) | ~counts
        metrics[HOLDOUT_ACCURACY] = float(right[is_scored].all(axis=1).mean())
    constant = tuple(f"{each.series} {each.column}" for each in by_series if each.is_constant)
    return ForecastReport(metrics, by_series, constant, best, scores, within_units)


def _varies(truth: npt.NDArray[np.float64], index: npt.NDArray[Any], series: int) -> npt.NDArray[np.bool_]:
    """Which series (series, columns) vary."""
    low = np.full((series, truth.shape[1]), np.inf)
    high = np.full((series, truth.shape[1]), -np.inf)
    np.minimum.at(low, index, truth)
    np.maximum.at(high, index, truth)
    return np.asarray(high - low > _LEAST_VARIATION * np.maximum(1.0, np.abs(high)))


def _errors(misses: npt.NDArray[np.float64], within_units: float) -> Errors:
    return Errors(
        rmse=float(np.sqrt(np.mean(misses**2))), mae=float(misses.mean()), within=float((misses <= within_units).mean())
    )


def _metrics(
    misses: Mapping[str, npt.NDArray[np.float64]], counts: npt.NDArray[np.bool_], within_units: float
) -> dict[str, float]:
    if not counts.any():
        return {}
    metrics: dict[str, float] = {}
    for name, miss in misses.items():
        errors = _errors(miss[counts], within_units)
        prefix = "holdout" if name == MODEL else name
        metrics |= {f"{prefix}_rmse": errors.rmse, f"{prefix}_mae": errors.mae}
        metrics[f"{prefix}_within_{within_units:g}"] = errors.within
    return metrics


def _scores(
    misses: Mapping[str, npt.NDArray[np.float64]],
    counts: npt.NDArray[np.bool_],
    is_scored: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.float64],
) -> dict[str, npt.NDArray[np.float64]]:
    if not is_scored.any():
        return {name: np.zeros(0) for name in misses}
    # Columns differ in size: each in units of its own variation.
    units = np.array(
        [column[used].std() if used.any() else 1.0 for column, used in zip(truth.T, counts.T, strict=True)]
    )
    units[units == 0] = 1.0
    kept = counts[is_scored]
    return {
        name: -(np.where(kept, miss[is_scored] / units, 0.0).sum(axis=1) / kept.sum(axis=1))
        for name, miss in misses.items()
    }
