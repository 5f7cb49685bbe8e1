"""The MNIST workflow for Flyte: `mnist_train` brings raw pictures to a served, verified model version.

Run it on the embedded stack with `pyflyte run workflow_examples/mnist/wf.py mnist_train`, or register it on a Flyte backend.
Each task calls one step of `pipeline`; what flows between them are references, never data or models.
"""

from __future__ import annotations

from flytekit import Resources, task, workflow

from semr.deployment.verification import ProbeReport
from semr.registry import ModelVersionRef
from workflow_examples.mnist import pipeline
from workflow_examples.mnist.train import TrainConfig

# Tasks wait for Ray jobs and REST calls; the work itself is done on Ray.
SMALL = Resources(cpu="500m", mem="1Gi")


@task(requests=SMALL)
def ingest(source: str, limit: int) -> str:
    """Raw pictures into the object store."""
    return pipeline.ingest(source, limit)


@task(requests=SMALL)
def prepare(raw_version: str) -> str:
    """Split into train, validation and holdout on Ray Data."""
    return pipeline.prepare(raw_version)


@task(requests=SMALL)
def train(dataset_version: str, epochs: int, batch_size: int, learning_rate: float, workers: int, seed: int) -> str:
    """Train data-parallel on Ray Train; returns the MLflow run."""
    return pipeline.train(TrainConfig(dataset_version, epochs, batch_size, learning_rate, workers, seed))


@task(requests=SMALL)
def evaluate(run_id: str, dataset_version: str, least_accuracy: float) -> float:
    """Holdout accuracy of the run's model."""
    return pipeline.evaluate(run_id, dataset_version, least_accuracy)


@task(requests=SMALL)
def register(run_id: str, model_name: str, dataset_version: str, accuracy: float) -> ModelVersionRef:
    """A new version of the registered model; `accuracy` makes it wait for the evaluation."""
    print(f"registering run {run_id}, holdout accuracy {accuracy:.4f}")
    return pipeline.register(run_id, model_name, dataset_version)


@task(requests=SMALL)
def deploy(model: ModelVersionRef, replicas: int) -> pipeline.Deployment:
    """Serve the version on Ray Serve."""
    return pipeline.deploy(model, replicas)


@task(requests=SMALL)
def verify(deployment: pipeline.Deployment, dataset_version: str) -> ProbeReport:
    """Real requests with real pictures; decides whether the version becomes champion."""
    return pipeline.verify(deployment, dataset_version)


@workflow
def mnist_train(
    source: str = "digits",
    limit: int = 0,
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 4e-3,
    workers: int = 2,
    replicas: int = 1,
    seed: int = 0,
    least_accuracy: float = 0.9,
    model_name: str = "mnist",
) -> tuple[ModelVersionRef, ProbeReport]:
    """From raw pictures to a served model.

    Args:
        source: `digits`, `mnist`, or a path; see `semr data mnist --help`.
        limit: take the first so many pictures only; 0 takes all.
        epochs: passes over the training split.
        batch_size: pictures per worker and step.
        learning_rate: of Adam, in the beginning.
        workers: data-parallel Ray Train workers.
        replicas: Ray Serve replicas.
        seed: of weights and shuffling.
        least_accuracy: holdout accuracy below which nothing is registered.
        model_name: registered model and route.

    Returns:
        The model version that is served, and the report of the requests that verified it.
    """
    raw_version = ingest(source=source, limit=limit)
    dataset_version = prepare(raw_version=raw_version)
    run_id = train(
        dataset_version=dataset_version,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        workers=workers,
        seed=seed,
    )
    accuracy = evaluate(run_id=run_id, dataset_version=dataset_version, least_accuracy=least_accuracy)
    model = register(run_id=run_id, model_name=model_name, dataset_version=dataset_version, accuracy=accuracy)
    deployment = deploy(model=model, replicas=replicas)
    report = verify(deployment=deployment, dataset_version=dataset_version)
    return model, report
