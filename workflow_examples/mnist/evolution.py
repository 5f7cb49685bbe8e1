"""The steps of `mnist_retrain` as plain functions: gather what was seen lately, train on from the champion, judge, settle.

Training is `pipeline.train`, registering `pipeline.register`: retraining is training with other data and another start.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from semr.deployment.choice import deployment_target
from semr.deployment.watch import WatchPlan
from semr.evolution.audit import AuditTrail
from semr.evolution.gate import GateReport, GateThresholds
from semr.evolution.rollout import Outcome, Rollout
from semr.job_entry import config_argument
from semr.jobs import RayJobs
from semr.monitoring.prometheus import Prometheus
from semr.registry import CHAMPION, ModelVersionRef, Registry
from semr.storage import ObjectStore
from workflow_examples.mnist import pipeline
from workflow_examples.mnist.judge import REPORT, JudgeConfig
from workflow_examples.mnist.recent import DATASET, RecentConfig


@dataclass(frozen=True)
class Retraining:
    """One retraining: the model, its champion, and the launch that it belongs to.

    Attributes:
        champion: version that is to be improved on.
        dataset: dataset that the champion was trained on.
        dataset_version: its version.
        launch_id: of the evolution service, "" when a person started it.
        trigger: kind of trigger: alert, cron or human.
    """

    champion: ModelVersionRef
    dataset: str
    dataset_version: str
    launch_id: str
    trigger: str


def start(model_name: str, launch_id: str, trigger: str) -> Retraining:
    """Look the champion and its data up.

    Args:
        model_name: registered model.
        launch_id: of the evolution service, "" when a person started it.
        trigger: JSON object with the key `kind`; "" for a person.

    Raises:
        ModelNotFoundError: there is no champion to improve on.
    """
    registry = Registry()
    champion = registry.get(model_name, CHAMPION)
    tags = registry.tags(champion)
    kind = str(json.loads(trigger).get("kind", "human")) if trigger else "human"
    dataset = tags.get("semr.dataset.name", "mnist")
    return Retraining(champion, dataset, tags["semr.dataset.version"], launch_id, kind)


def gather(retraining: Retraining, window_seconds: float, replay_share: float, least_rows: int) -> str:
    """The recent labelled window and a share of the old data; returns the version of `mnist-recent`."""
    config = RecentConfig(
        model=retraining.champion.name,
        champion_dataset=retraining.dataset,
        champion_dataset_version=retraining.dataset_version,
        window_seconds=window_seconds,
        least_rows=least_rows,
        replay_share=replay_share,
    )
    return pipeline.dataset_version_of(RayJobs().run(f"{__package__}.recent", config_argument(config), on_line=print))


def register(retraining: Retraining, run_id: str, dataset_version: str) -> ModelVersionRef:
    """Register the run's model as challenger, with its lineage."""
    challenger = pipeline.register(
        run_id, retraining.champion.name, dataset_version, dataset=DATASET, trigger=retraining.trigger
    )
    details = {
        "run_id": run_id,
        "dataset": DATASET,
        "dataset_version": dataset_version,
        "parent": retraining.champion.version,
    }
    _audit().append(
        challenger.name, "trained", launch_id=retraining.launch_id, version=challenger.version, details=details
    )
    return challenger


def judge(
    retraining: Retraining, challenger: ModelVersionRef, dataset_version: str, thresholds: GateThresholds
) -> GateReport:
    """Champion and challenger on the same pictures; the report is an artifact of the challenger's run."""
    import mlflow  # noqa: PLC0415 - takes a second to import
    from pydantic import TypeAdapter  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415

    config = JudgeConfig(
        challenger.name, retraining.champion.version, challenger.version, challenger.run_id, dataset_version, thresholds
    )
    RayJobs().run(f"{__package__}.judge", config_argument(config), on_line=print)
    with tracking.named_errors():
        tracking.connect()
        content = mlflow.artifacts.load_dict(f"runs:/{challenger.run_id}/{REPORT}")
    return TypeAdapter(GateReport).validate_python(content)


def settle(
    retraining: Retraining,
    challenger: ModelVersionRef,
    report: GateReport,
    plan: WatchPlan,
    replicas: int | None,
    window_seconds: float,
    target: str = "",
) -> Outcome:
    """Promote, refuse, or take back: see `semr.evolution.rollout`.

    The new version is compared with what the champion did in the last `window_seconds`, the time that it was trained for.
    """
    rollout = Rollout(
        Registry(), deployment_target(name=target), _audit(), Prometheus(), retraining.launch_id, window_seconds
    )
    return rollout.settle(retraining.champion, challenger, report, plan, replicas)


def _audit() -> AuditTrail:
    return AuditTrail(ObjectStore.from_settings())
