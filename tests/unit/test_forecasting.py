"""Judging forecasts: errors by series, constants, baselines."""

from __future__ import annotations

import numpy as np
import pytest

from semr.errors import InvalidInputError
from semr.evaluation.forecasting import judge_forecast
from workflow_examples.qoe.evaluate import baselines, skill_of

RANDOM = np.random.default_rng(0)


def test_errors_are_those_of_the_series_that_vary() -> None:
    actual = np.array([[1.0, 5.0], [3.0, 5.0], [10.0, 5.0], [30.0, 7.0]])
    model = actual + np.array([[1.0, 0.0], [-1.0, 0.0], [2.0, 3.0], [-8.0, 3.0]])
    cells = np.array(["a", "a", "b", "b"])
    report = judge_forecast(actual, {"model": model, "zero": actual * 0}, cells, ["x", "y"], tolerance=(2.0, 1.0))
    assert report.constant == ("a y",)
    first = next(each for each in report.by_series if (each.series, each.column) == ("b", "x"))
    assert first.errors["model"].rmse == pytest.approx(np.sqrt((4 + 64) / 2))
    assert first.errors["model"].mae == 5
    assert first.errors["model"].within == 0.5
    # Of series "a" only column x counts: right within 2; both examples of "b" miss y.
    assert report.metrics["holdout_accuracy"] == 0.5
    assert report.metrics["holdout_mae"] == pytest.approx((1 + 1 + 2 + 8 + 3 + 3) / 6)
    assert report.metrics["holdout_constant_series"] == 1
    assert report.best_baseline == "zero"
    assert "constant: nothing to forecast" in report.table()


def test_a_constant_is_never_celebrated() -> None:
    windows = np.full((200, 10, 1), 2.56, np.float32)
    actual = np.full((200, 1), 2.56) + RANDOM.normal(0, 1e-12, (200, 1))
    report = judge_forecast(
        actual, {"model": actual, **baselines(windows)}, np.full(200, "c2/B2"), ["down"], tolerance=(1,)
    )
    assert "holdout_accuracy" not in report.metrics and "holdout_rmse" not in report.metrics
    skill = skill_of(report)
    assert not skill.is_better
    assert "nothing to learn" in skill.reason and "c2/B2 down" in skill.reason


@pytest.mark.parametrize(("error", "is_better"), [(0.5, True), (1.0, False), (2.0, False)])
def test_better_means_better_than_the_best_baseline_by_more_than_chance(error: float, is_better: bool) -> None:
    """Persistence of white noise misses by its difference; a model with errors as large is no gain."""
    series = np.cumsum(RANDOM.normal(0, 1, 3010)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(series[:-1], 10)[..., None]
    actual = series[10:, None]
    model = actual + RANDOM.normal(0, error, actual.shape)
    report = judge_forecast(actual, {"model": model, **baselines(windows)}, np.full(len(actual), "c"), ["x"])
    assert report.best_baseline == "persistence"
    skill = skill_of(report)
    assert skill.is_better == is_better, skill.reason
    assert ("not better than persistence" in skill.reason) == (not is_better)


def test_what_does_not_fit_is_refused() -> None:
    cells = np.array(["a", "a"])
    with pytest.raises(InvalidInputError, match="with at least one row"):
        judge_forecast(np.zeros((2, 1)), {"model": np.zeros((2, 2))}, cells, ["x"])
    with pytest.raises(InvalidInputError, match="'model'"):
        judge_forecast(np.zeros((2, 1)), {"other": np.zeros((2, 1))}, cells, ["x"])
    with pytest.raises(InvalidInputError, match="not a finite number"):
        judge_forecast(np.zeros((2, 1)), {"model": np.full((2, 1), np.nan)}, cells, ["x"])


def test_the_picture_shows_every_forecast() -> None:
    actual = RANDOM.random((50, 1))
    report = judge_forecast(actual, {"model": actual, "mean": actual * 0 + 0.5}, np.full(50, "c"), ["x"])
    axes = report.figure("title").axes[0]
    assert [line.get_label() for line in axes.lines] == ["model", "mean"]
