"""The steps of `qoe_retrain` as plain functions; what is not about forecasts is in `semr.evolution.retraining`."""

from __future__ import annotations

from semr import steps
from semr.evolution import retraining as general
from semr.evolution.gate import GateReport, GateThresholds
from semr.evolution.retraining import Retraining, settle
from semr.registry import ModelVersionRef
from workflow_examples.qoe.prepare import DATASET as FIRST_DATASET
from workflow_examples.qoe.recent import DATASET, RecentConfig

__all__ = ["Retraining", "settle"]


def start(model_name: str, launch_id: str, trigger: str) -> Retraining:
    """Look the champion and its data up: see `semr.evolution.retraining.start`."""
    return general.start(model_name, launch_id, trigger, FIRST_DATASET)


def gather(retraining: Retraining, window_seconds: float, replay_share: float, least_rows: int) -> str:
    """The recent window with what came, and a share of the old data; returns the version of `qoe-recent`."""
    config = RecentConfig(
        model=retraining.champion.name,
        champion_dataset=retraining.dataset,
        champion_dataset_version=retraining.dataset_version,
        window_seconds=window_seconds,
        least_rows=least_rows,
        replay_share=replay_share,
    )
    return steps.dataset_version_of(steps.run_job(f"{__package__}.recent", config))


def register(retraining: Retraining, run_id: str, dataset_version: str) -> ModelVersionRef:
    """Register the run's model as challenger, with its lineage."""
    return general.register(retraining, run_id, DATASET, dataset_version)


def judge(
    retraining: Retraining, challenger: ModelVersionRef, dataset_version: str, thresholds: GateThresholds
) -> GateReport:
    """Champion and challenger on the same windows; the report is an artifact of the challenger's run."""
    return general.judge(f"{__package__}.judge", retraining, challenger, dataset_version, thresholds)
