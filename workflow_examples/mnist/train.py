"""Ray job: train the classifier data-parallel on a dataset version and log it to an MLflow run."""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from semr.job_entry import job_main, tracked_run
from semr.monitoring.drift import log_reference_window
from semr.storage import DatasetVersion, ObjectStore
from semr.training.keras import TrainingPlan, fit
from workflow_examples.mnist.model import build_model, to_example, to_input, warm_start
from workflow_examples.mnist.prepare import DATASET, EXPERIMENT

# Enough for ten bins a feature to be known to a few per mille; more would make the chance level of drift no smaller in use.
_REFERENCE_ROWS = 10_000


@dataclass(frozen=True)
class TrainConfig:
    """What to train on and how; see `semr.training.keras.TrainingPlan`.

    Attributes:
        dataset_version: version of `dataset`.
        warm_start: model to start from, as `models:/mnist/3`; "" starts from random weights.
        dataset: with the splits `train` and `validation`.
        reference_split: shows what live input looks like at the time of training; drift is measured against it.
    """

    dataset_version: str
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 4e-3
    workers: int = 2
    seed: int = 0
    warm_start: str = ""
    dataset: str = DATASET
    reference_split: str = "train"


def train(config: TrainConfig) -> None:
    """Train; the job's MLflow run holds parameters, learning curve, system metrics and the model."""
    import mlflow  # noqa: PLC0415 - not needed by Ray Train's workers, which import this module too

    from semr.inference.runtime.loading import EXTENSIONS_KEY  # noqa: PLC0415
    from semr.tracking import DATASET_TAG  # noqa: PLC0415

    store = ObjectStore.from_settings()
    dataset = store.dataset(config.dataset, config.dataset_version)
    plan = TrainingPlan(config.epochs, config.batch_size, config.workers, config.seed)
    with tracked_run(EXPERIMENT, "train", system_metrics=True) as run_id:
        mlflow.log_params(asdict(config))
        mlflow.set_tags(
            {DATASET_TAG: dataset.version, "semr.dataset.uri": dataset.uri, "semr.dataset.source": dataset.source}
        )
        steps = plan.steps(dataset.splits["train"])
        if config.warm_start:
            build = functools.partial(warm_start, config.warm_start, config.learning_rate, steps)
        else:
            build = functools.partial(build_model, config.learning_rate, steps)
        metrics = fit(build, to_example, dataset, plan, run_id, {EXTENSIONS_KEY: f"{__package__}.predict_image"})
        log_reference_window(run_id, _reference_inputs(store, dataset, config.reference_split), "image_moments")
        print(f"run {run_id}: {metrics}")


def _reference_inputs(store: ObjectStore, dataset: DatasetVersion, split: str) -> npt.NDArray[np.float32]:
    """The first pictures of the split, as the server will see inputs."""
    images = store.read(dataset, split, ["image"]).slice(0, _REFERENCE_ROWS)["image"].combine_chunks()
    return to_input(images.flatten().to_numpy())


if __name__ == "__main__":
    sys.exit(job_main(train, TrainConfig))
