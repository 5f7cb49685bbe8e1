"""Ray job: train the classifier data-parallel on a dataset version and log it to an MLflow run."""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict, dataclass

from semr.job_entry import job_main, tracked_run
from semr.storage import ObjectStore
from semr.training.keras import TrainingPlan, fit
from workflow_examples.mnist.model import build_model, to_example
from workflow_examples.mnist.prepare import DATASET, EXPERIMENT


@dataclass(frozen=True)
class TrainConfig:
    """What to train on and how; see `semr.training.keras.TrainingPlan`."""

    dataset_version: str
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 2e-3
    workers: int = 2
    seed: int = 0


def train(config: TrainConfig) -> None:
    """Train; the job's MLflow run holds parameters, learning curve, system metrics and the model."""
    import mlflow  # noqa: PLC0415 - not needed by Ray Train's workers, which import this module too

    from semr.tracking import DATASET_TAG  # noqa: PLC0415

    dataset = ObjectStore.from_settings().dataset(DATASET, config.dataset_version)
    plan = TrainingPlan(config.epochs, config.batch_size, config.workers, config.seed)
    with tracked_run(EXPERIMENT, "train", system_metrics=True) as run_id:
        mlflow.log_params(asdict(config))
        mlflow.set_tags(
            {DATASET_TAG: dataset.version, "semr.dataset.uri": dataset.uri, "semr.dataset.source": dataset.source}
        )
        metrics = fit(functools.partial(build_model, config.learning_rate), to_example, dataset, plan, run_id)
        print(f"run {run_id}: {metrics}")


if __name__ == "__main__":
    sys.exit(job_main(train, TrainConfig))
