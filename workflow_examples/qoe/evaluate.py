"""Ray job: judge a run's forecaster on the holdout, against forecasts that need no model; the verdict goes to the run."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from semr.evaluation.forecasting import MODEL, ForecastReport, judge_forecast
from semr.evolution.candidates import Forward, in_batches
from semr.evolution.gate import Comparison, compare
from semr.job_entry import job_main
from semr.monitoring.classification import TOLERANCE_KEY, parse_tolerance
from semr.storage import DatasetVersion, ObjectStore
from workflow_examples.qoe.features import read_metadata
from workflow_examples.qoe.prepare import DATASET

REPORT = "evaluation/report.json"
BATCH_ROWS = 8192
# Enough for the interval; ten thousand resamples of all rows would take minutes.
_COMPARED_ROWS = 10_000
_CONFIDENCE = 0.95

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EvaluateConfig:
    """Which run's model to judge, and on which dataset version's holdout."""

    run_id: str
    dataset_version: str


@dataclass(frozen=True)
class Holdout:
    """A split in the units of the reports: windows (rows, steps, columns), targets (rows, columns), cells (rows,)."""

    windows: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]
    cells: npt.NDArray[Any]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Skill:
    """Whether a forecaster is better than the best forecast without a model, by more than chance."""

    is_better: bool
    reason: str
    comparison: Comparison | None


def evaluate(config: EvaluateConfig) -> None:
    """Log errors by cell, baselines, picture and verdict."""
    import mlflow  # noqa: PLC0415 - seconds to import; the configuration above is imported by workflow tasks too

    from semr import tracking  # noqa: PLC0415

    store = ObjectStore.from_settings()
    holdout = read_split(store, store.dataset(DATASET, config.dataset_version), "holdout")
    with tracking.named_errors():
        tracking.connect()
        uri = f"runs:/{config.run_id}/model"
        report = judge(holdout, load_forward(uri), tolerance_of(uri))
        skill = skill_of(report)
        with mlflow.start_run(run_id=config.run_id):
            mlflow.log_metrics({**report.metrics, "better_than_baselines": float(skill.is_better)})
            mlflow.log_dict({**report.to_dict(), "skill": asdict(skill)}, REPORT)
            mlflow.log_figure(report.figure("QoE holdout"), "evaluation/errors_by_cell.png")
    print(report.table())
    print(f"run {config.run_id}: {skill.reason}")


def read_split(store: ObjectStore, dataset: DatasetVersion, split: str) -> Holdout:
    """A split without its scaling."""
    plan, scaling = read_metadata(dataset.metadata)
    table = store.read(dataset, split)
    windows = table["window"].combine_chunks().flatten().to_numpy().reshape(-1, plan.steps, len(plan.columns))
    targets = table["target"].combine_chunks().flatten().to_numpy().reshape(-1, len(plan.columns))
    return Holdout(
        scaling.unscale(windows).astype(np.float32),
        scaling.unscale(targets).astype(np.float32),
        np.asarray(table["cell"].to_pylist()),
        plan.columns,
    )


def baselines(windows: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """Forecasts without a model: the last step again, and the mean of the window."""
    return {"persistence": windows[:, -1], "moving_average": windows.mean(axis=1)}


def judge(holdout: Holdout, forward: Forward, tolerance: tuple[float, ...] | None) -> ForecastReport:
    """The model's forecasts for a split, beside those of the baselines."""
    forecasts = {MODEL: in_batches(forward, holdout.windows, BATCH_ROWS), **baselines(holdout.windows)}
    return judge_forecast(holdout.targets, forecasts, holdout.cells, holdout.columns, tolerance=tolerance)


def skill_of(report: ForecastReport) -> Skill:
    """Compare the model with the best baseline over the same examples (paired bootstrap, see `semr.evolution.gate`)."""
    named = f"; constant, so without anything to forecast: {', '.join(report.constant)}" if report.constant else ""
    if not report.best_baseline:
        return Skill(False, f"every series is constant: there is nothing to learn{named}", None)
    before, after = report.scores[report.best_baseline], report.scores[MODEL]
    step = max(1, len(before) // _COMPARED_ROWS)
    found = compare(before[::step], after[::step], _CONFIDENCE)
    is_better = found.low > 0
    model, best = report.metrics["holdout_rmse"], report.metrics[f"{report.best_baseline}_rmse"]
    verdict = "better than" if is_better else "not better than"
    reason = (
        f"{verdict} {report.best_baseline} by more than chance: rmse {model:.4f} against {best:.4f}, gain of the scaled "
        f"absolute error {found.gain:+.4f} ({found.low:+.4f} to {found.high:+.4f}){named}"
    )
    return Skill(bool(is_better), reason, found)


def load_forward(uri: str) -> Forward:
    """A logged forecaster as a function of windows."""
    import mlflow.pytorch  # noqa: PLC0415
    import torch  # noqa: PLC0415

    network = mlflow.pytorch.load_model(uri)
    network = network.module() if hasattr(network, "module") else network

    def forward(windows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(np.ascontiguousarray(windows, np.float32))).numpy())

    return forward


def tolerance_of(uri: str) -> tuple[float, ...] | None:
    """What a logged forecaster says of errors that count as right."""
    from mlflow.models import get_model_info  # noqa: PLC0415

    return parse_tolerance((get_model_info(uri).metadata or {}).get(TOLERANCE_KEY))


if __name__ == "__main__":
    sys.exit(job_main(evaluate, EvaluateConfig))
