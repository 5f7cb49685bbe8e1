"""The steps of a retraining that are the same for every model: look its champion up, note what was trained, judge, settle."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import TypeAdapter

from semr import steps
from semr.deployment.choice import deployment_target
from semr.deployment.watch import WatchPlan
from semr.evolution.audit import AuditTrail
from semr.evolution.gate import GateReport, GateThresholds
from semr.evolution.rollout import Outcome, Rollout
from semr.monitoring.prometheus import Prometheus
from semr.registry import CHAMPION, ModelVersionRef, Registry
from semr.storage import ObjectStore

#: Artifact of the challenger's run.
GATE_REPORT = "gate/report.json"


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


@dataclass(frozen=True)
class JudgeConfig:
    """Configuration of a judge's job: who is compared on which dataset version, and what the challenger has to reach."""

    model: str
    champion_version: str
    challenger_version: str
    challenger_run_id: str
    dataset_version: str
    thresholds: GateThresholds


def start(model_name: str, launch_id: str, trigger: str, dataset: str) -> Retraining:
    """Look the champion and its data up.

    Args:
        model_name: registered model.
        launch_id: of the evolution service, "" when a person started it.
        trigger: JSON object with the key `kind`; "" for a person.
        dataset: dataset of a champion that does not say what it was trained on.

    Raises:
        ModelNotFoundError: there is no champion to improve on.
    """
    registry = Registry()
    champion = registry.get(model_name, CHAMPION)
    tags = registry.tags(champion)
    kind = str(json.loads(trigger).get("kind", "human")) if trigger else "human"
    name = tags.get(steps.DATASET_NAME_TAG, dataset)
    return Retraining(champion, name, tags[steps.DATASET_VERSION_TAG], launch_id, kind)


def register(retraining: Retraining, run_id: str, dataset: str, dataset_version: str) -> ModelVersionRef:
    """Register the run's model as challenger, with its lineage."""
    challenger = steps.register(run_id, retraining.champion.name, dataset, dataset_version, retraining.trigger)
    details = {
        "run_id": run_id,
        "dataset": dataset,
        "dataset_version": dataset_version,
        "parent": retraining.champion.version,
    }
    _audit().append(
        challenger.name, "trained", launch_id=retraining.launch_id, version=challenger.version, details=details
    )
    return challenger


def judge(
    job_module: str,
    retraining: Retraining,
    challenger: ModelVersionRef,
    dataset_version: str,
    thresholds: GateThresholds,
) -> GateReport:
    """Champion and challenger on the same examples.

    Args:
        job_module: Ray job that takes a `JudgeConfig` and leaves the report as artifact `GATE_REPORT` of the challenger's run.
        retraining: names the champion.
        challenger: what was trained.
        dataset_version: with the holdouts.
        thresholds: what the challenger has to reach.
    """
    config = JudgeConfig(
        challenger.name, retraining.champion.version, challenger.version, challenger.run_id, dataset_version, thresholds
    )
    steps.run_job(job_module, config)
    return TypeAdapter(GateReport).validate_python(steps.artifact_of_run(challenger.run_id, GATE_REPORT))


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
