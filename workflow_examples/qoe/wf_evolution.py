"""The workflows by which the QoE forecaster evolves: `qoe_retrain`, which the evolution service launches, and `qoe_watch`.

Retraining is the training of `wf` with other data (`recent`) and another start (the champion's weights), followed by
the gate and a watched roll-out in place of a plain deployment.
"""

from __future__ import annotations

import dataclasses

from flytekit import CronSchedule, LaunchPlan, conditional, task, workflow
from pydantic import TypeAdapter

from semr.deployment.watch import WatchPlan
from semr.evolution import watching
from semr.evolution.gate import GateReport, GateThresholds
from semr.registry import ModelVersionRef
from workflow_examples.qoe import evolution, pipeline
from workflow_examples.qoe.evolution import Retraining
from workflow_examples.qoe.recent import DATASET
from workflow_examples.qoe.train import TrainConfig
from workflow_examples.qoe.wf import SMALL


@task(requests=SMALL)
def start(model_name: str, launch_id: str, trigger: str) -> Retraining:
    """The champion that is to be improved on."""
    return evolution.start(model_name, launch_id, trigger)


@task(requests=SMALL)
def gather(retraining: Retraining, window_seconds: float, replay_share: float, least_rows: int) -> str:
    """What was seen lately, with a share of the old data."""
    return evolution.gather(retraining, window_seconds, replay_share, least_rows)


@task(requests=SMALL)
def train_on(
    retraining: Retraining,
    dataset_version: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    workers: int,
    seed: int,
) -> str:
    """Train further from the champion's weights; returns the MLflow run."""
    config = TrainConfig(
        dataset_version,
        epochs,
        batch_size,
        learning_rate,
        workers,
        seed,
        warm_start_run=retraining.champion.run_id,
        dataset=DATASET,
        # All of it is recent; the training split has replayed windows too, and is not what comes in.
        reference_split="holdout",
    )
    return pipeline.train(config)


@task(requests=SMALL)
def register(retraining: Retraining, run_id: str, dataset_version: str) -> ModelVersionRef:
    """The challenger."""
    return evolution.register(retraining, run_id, dataset_version)


@task(requests=SMALL)
def judge(
    retraining: Retraining,
    challenger: ModelVersionRef,
    dataset_version: str,
    min_gain: float,
    allowed_loss_on_old: float,
    confidence: float,
    latency_factor: float,
    max_size_mb: float,
) -> str:
    """The gate's report as JSON."""
    thresholds = GateThresholds(min_gain, allowed_loss_on_old, confidence, latency_factor, max_size_mb)
    return evolution.judge(retraining, challenger, dataset_version, thresholds).to_json()


@task(requests=SMALL)
def settle(
    retraining: Retraining,
    challenger: ModelVersionRef,
    report: str,
    replicas: int,
    window_seconds: float,
    seconds: float,
    least_requests: int,
    margin: float,
    target: str,
) -> str:
    """Promote, refuse, or take back; returns the outcome as JSON."""
    plan = dataclasses.replace(
        WatchPlan(), window_seconds=seconds, least_requests=least_requests, accuracy_margin=margin
    )
    gate_report = TypeAdapter(GateReport).validate_json(report)
    return evolution.settle(
        retraining, challenger, gate_report, plan, replicas or None, window_seconds, target
    ).to_json()


@workflow
def qoe_retrain(
    model_name: str = "qoe",
    launch_id: str = "",
    trigger: str = "",
    window_seconds: float = 3600.0,
    replay_share: float = 0.3,
    least_rows: int = 200,
    epochs: int = 15,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    workers: int = 2,
    seed: int = 0,
    replicas: int = 0,
    min_gain: float = 0.0,
    allowed_loss_on_old: float = 0.05,
    confidence: float = 0.95,
    latency_factor: float = 2.0,
    max_size_mb: float = 100.0,
    verification_seconds: float = 300.0,
    verification_least_requests: int = 100,
    verification_margin: float = 0.02,
    deployment_target: str = "",
) -> str:
    """Improve on the champion with what was seen lately.

    Args:
        model_name: registered model.
        launch_id: given by the evolution service; ties the records of the audit trail together.
        trigger: JSON with the key `kind` (alert, cron or human), given by the evolution service.
        window_seconds: age of the oldest request that counts as recent.
        replay_share: share of old windows in the training split.
        least_rows: forecasts with known truth below which there is nothing to learn from.
        epochs: passes over the training split.
        batch_size: windows per worker and step.
        learning_rate: of Adam; lower than at first, since the weights are good already.
        workers: data-parallel Ray Train workers.
        seed: of shuffling.
        replicas: of the new version; 0: as many as there are.
        min_gain: see `semr.evolution.gate.GateThresholds`, as the following four.
        allowed_loss_on_old: see there.
        confidence: see there.
        latency_factor: see there.
        max_size_mb: see there.
        verification_seconds: length of the watch over the new version on live traffic.
        verification_least_requests: requests without which the watch says nothing.
        verification_margin: the live share of right forecasts may be so much below the champion's.
        deployment_target: ray_serve or helm; "" is what the contract says.

    Returns:
        `semr.evolution.rollout.Outcome` as JSON.
    """
    retraining = start(model_name=model_name, launch_id=launch_id, trigger=trigger)
    dataset_version = gather(
        retraining=retraining, window_seconds=window_seconds, replay_share=replay_share, least_rows=least_rows
    )
    run_id = train_on(
        retraining=retraining,
        dataset_version=dataset_version,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        workers=workers,
        seed=seed,
    )
    challenger = register(retraining=retraining, run_id=run_id, dataset_version=dataset_version)
    report = judge(
        retraining=retraining,
        challenger=challenger,
        dataset_version=dataset_version,
        min_gain=min_gain,
        allowed_loss_on_old=allowed_loss_on_old,
        confidence=confidence,
        latency_factor=latency_factor,
        max_size_mb=max_size_mb,
    )
    return settle(
        retraining=retraining,
        challenger=challenger,
        report=report,
        replicas=replicas,
        window_seconds=window_seconds,
        seconds=verification_seconds,
        least_requests=verification_least_requests,
        margin=verification_margin,
        target=deployment_target,
    )


@task(requests=SMALL)
def look(model_name: str) -> str:
    """What is to be done: `stay`, `ask` or `retrain`."""
    return watching.look(model_name)


@task(requests=SMALL)
def ask(model_name: str) -> str:
    """Ask the evolution service, whose policy and ledger then decide."""
    return watching.ask(model_name, "qoe_watch")


@task(requests=SMALL)
def stay(model_name: str) -> str:
    """Nothing to do."""
    return watching.stay(model_name)


@workflow
def qoe_watch(
    model_name: str = "qoe",
    window_seconds: float = 3600.0,
    least_rows: int = 200,
    epochs: int = 15,
    learning_rate: float = 1e-3,
    workers: int = 2,
    verification_seconds: float = 300.0,
    deployment_target: str = "",
) -> str:
    """Retrain if an alert fires; for sites that want no inbound webhook, with the evolution service or without it.

    Args:
        model_name: registered model.
        window_seconds: see `qoe_retrain`, as the following; where there is an evolution service, its policy has them.
        least_rows: see there.
        epochs: see there.
        learning_rate: see there.
        workers: see there.
        verification_seconds: see there.
        deployment_target: see there.

    Returns:
        JSON with `verdict` (unchanged, launched, or what `qoe_retrain` has found) and `reason`.
    """
    needed = look(model_name=model_name)
    return (
        conditional("alert")
        .if_(needed == "ask")
        .then(ask(model_name=model_name))
        .elif_(needed == "retrain")
        .then(
            qoe_retrain(
                model_name=model_name,
                trigger='{"kind": "cron"}',
                window_seconds=window_seconds,
                least_rows=least_rows,
                epochs=epochs,
                learning_rate=learning_rate,
                workers=workers,
                verification_seconds=verification_seconds,
                deployment_target=deployment_target,
            )
        )
        .else_()
        .then(stay(model_name=model_name))
    )


qoe_watch_every_10_minutes = LaunchPlan.get_or_create(
    qoe_watch,
    name="qoe_watch_every_10_minutes",
    schedule=CronSchedule(schedule="*/10 * * * *"),
)
