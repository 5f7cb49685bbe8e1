"""Judging a model's predictions on a holdout: classes, forecasts."""

from semr.evaluation.classification import HOLDOUT_ACCURACY, ClassifierReport, judge_classifier
from semr.evaluation.forecasting import ForecastReport, judge_forecast

__all__ = ["HOLDOUT_ACCURACY", "ClassifierReport", "ForecastReport", "judge_classifier", "judge_forecast"]
