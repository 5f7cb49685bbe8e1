"""The QoE workflow for Flyte: `qoe_train` brings cell measurement reports to a served, verified forecaster.

Run it on the embedded stack with `pyflyte run workflow_examples/qoe/wf.py qoe_train`, or register it on a Flyte backend.
Each task calls one step of `pipeline`; what flows between them are references, never data or models.
"""

from __future__ import annotations

import json
from dataclasses import replace

from flytekit import Resources, conditional, task, workflow

from semr.errors import InvalidInputError
from semr.registry import ModelVersionRef
from workflow_examples.qoe import pipeline
from workflow_examples.qoe.features import WindowPlan
from workflow_examples.qoe.train import TrainConfig

# Tasks wait for Ray jobs and REST calls; the work itself is done on Ray.
SMALL = Resources(cpu="500m", mem="1Gi")


@task(requests=SMALL)
def check(
    n: int,
    columns: str,
    steps: int,
    horizon: int,
    architecture: str,
    hidden: int,
    layers: int,
    epochs: int,
    bt_s: int,
    learning_rate: float,
    patience: int,
    workers: int,
    seed: int,
) -> tuple[int, TrainConfig]:
    """Refuse what cannot be before anything is written; returns `n`, so that the reports wait for it, and how to train."""
    if n < 1:
        raise InvalidInputError(
            f"n must be at least 1, not {n}: it is how many times the reports are taken, 1 as they are."
        )
    if bt_s < 1:
        raise InvalidInputError(f"bt_s must be at least 1, not {bt_s}: it is the batch size in windows, such as 256.")
    config = TrainConfig(
        # There is none yet.
        dataset_version="",
        epochs=epochs,
        batch_size=bt_s,
        learning_rate=learning_rate,
        workers=workers,
        seed=seed,
        patience=patience,
        architecture=architecture,
        hidden=hidden,
        layers=layers,
    )
    pipeline.check(config, WindowPlan(_names(columns), steps, horizon))
    return n, config


@task(requests=SMALL)
def ingest(source: str, n: int) -> str:
    """Reports into the object store."""
    return pipeline.ingest(source, n)


@task(requests=SMALL)
def prepare(raw_version: str, cells: str, columns: str, steps: int, horizon: int) -> str:
    """Rates, windows, scaling and splits on Ray Data."""
    return pipeline.prepare(raw_version, _names(cells), WindowPlan(_names(columns), steps, horizon))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@task(requests=SMALL)
def train(dataset_version: str, config: TrainConfig) -> str:
    """Train data-parallel on Ray Train; returns the MLflow run."""
    return pipeline.train(replace(config, dataset_version=dataset_version))


@task(requests=SMALL)
def evaluate(run_id: str, dataset_version: str) -> tuple[bool, str]:
    """Whether the model is better than forecasts without one, and the reason."""
    found = pipeline.evaluate(run_id, dataset_version)
    return found.is_better, found.reason


@task(requests=SMALL)
def register(run_id: str, model_name: str, dataset_version: str) -> ModelVersionRef:
    """A new version of the registered model."""
    return pipeline.register(run_id, model_name, dataset_version)


@task(requests=SMALL)
def deploy(model: ModelVersionRef, replicas: int) -> pipeline.Deployment:
    """Serve the version on Ray Serve."""
    return pipeline.deploy(model, replicas)


@task(requests=SMALL)
def verify(deployment: pipeline.Deployment, dataset_version: str, reason: str) -> str:
    """Real requests with real windows; decides whether the version becomes champion."""
    report = pipeline.verify(deployment, dataset_version)
    model = deployment.model
    live = f"{report.requests} requests, accuracy {report.accuracy:.4f}, p50 {report.p50_milliseconds:.1f} ms"
    print(f"{model.uri} is champion: {reason}; {live}")
    return json.dumps({"verdict": "promoted", "reason": f"{reason}; {live}", "model": model.uri, "url": deployment.url})


@task(requests=SMALL)
def decline(run_id: str, reason: str) -> str:
    """The model is of no use: it is not registered, and what was served before still is."""
    print(f"run {run_id} is not registered: {reason}")
    return json.dumps({"verdict": "declined", "reason": reason, "model": "", "url": ""})


@workflow
def roll_out(run_id: str, model_name: str, dataset_version: str, replicas: int, reason: str) -> str:
    """Register, serve, verify."""
    model = register(run_id=run_id, model_name=model_name, dataset_version=dataset_version)
    deployment = deploy(model=model, replicas=replicas)
    return verify(deployment=deployment, dataset_version=dataset_version, reason=reason)


@workflow
def qoe_train(
    source: str = "synthetic",
    n: int = 1,
    cells: str = "",
    columns: str = "pdcpBytesDl,pdcpBytesUl",
    steps: int = 10,
    horizon: int = 1,
    architecture: str = "lstm",
    hidden: int = 64,
    layers: int = 1,
    epochs: int = 30,
    bt_s: int = 256,
    learning_rate: float = 3e-3,
    patience: int = 5,
    workers: int = 2,
    replicas: int = 1,
    seed: int = 0,
    model_name: str = "qoe",
) -> str:
    """From reports to a served forecaster.

    Args:
        source: `synthetic`, or the path of a file of reports; see `semr data qoe --help`.
        n: how many times the reports are taken, each time later than before: 10 makes ten times the data, to measure how
            the workflow grows with it. The name is that of the reference system's parameter.
        cells: names of cells to learn from, such as `c1/B2,c1/B13`; all when empty.
        columns: measures to learn and forecast, separated by commas.
        steps: past steps that the model sees.
        horizon: how many steps ahead it forecasts.
        architecture: lstm, tcn or linear.
        hidden: units in a layer.
        layers: of the network.
        epochs: passes over the training split, at most.
        bt_s: batch size: windows per worker and step. The name is that of the reference system's parameter.
        learning_rate: of Adam, in the beginning.
        patience: epochs without a better validation loss after which training ends.
        workers: data-parallel Ray Train workers.
        replicas: Ray Serve replicas.
        seed: of weights and shuffling.
        model_name: registered model and route.

    Returns:
        JSON: `verdict` (promoted, or declined when the model does not beat the baselines), `reason`, `model`, `url`.
    """
    checked_n, config = check(
        n=n,
        columns=columns,
        steps=steps,
        horizon=horizon,
        architecture=architecture,
        hidden=hidden,
        layers=layers,
        epochs=epochs,
        bt_s=bt_s,
        learning_rate=learning_rate,
        patience=patience,
        workers=workers,
        seed=seed,
    )
    raw_version = ingest(source=source, n=checked_n)
    dataset_version = prepare(raw_version=raw_version, cells=cells, columns=columns, steps=steps, horizon=horizon)
    run_id = train(dataset_version=dataset_version, config=config)
    is_better, reason = evaluate(run_id=run_id, dataset_version=dataset_version)
    return (
        conditional("better_than_baselines")
        .if_(is_better.is_true())
        .then(
            roll_out(
                run_id=run_id,
                model_name=model_name,
                dataset_version=dataset_version,
                replicas=replicas,
                reason=reason,
            )
        )
        .else_()
        .then(decline(run_id=run_id, reason=reason))
    )
