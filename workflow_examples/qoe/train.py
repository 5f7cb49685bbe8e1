"""Ray job: train a forecaster data-parallel on a dataset version and log it to an MLflow run."""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semr.job_entry import job_main, tracked_run
from semr.monitoring.classification import TOLERANCE_KEY
from semr.monitoring.drift import log_reference_window
from semr.storage import DatasetVersion, ObjectStore
from semr.training.shard import Example
from semr.training.torch import TorchPlan, TorchTask, fit, load_weights
from workflow_examples.qoe.features import Scaling, WindowPlan, read_metadata
from workflow_examples.qoe.model import ModelConfig, build_model, served_model, to_example
from workflow_examples.qoe.prepare import DATASET, EXPERIMENT

if TYPE_CHECKING:
    from torch import nn

_REFERENCE_ROWS = 20_000
# A forecast counts as right when its error is one that nine in ten have on the validation split: so the share of right ones
# means the same for every model and unit, and falls when errors grow.
_RIGHT_SHARE = 0.9


@dataclass(frozen=True)
class TrainConfig:
    """What to train on and how; see `semr.training.torch.TorchPlan` and `model.ModelConfig`.

    Attributes:
        dataset_version: version of `dataset`.
        warm_start_run: run whose network is trained further; "" starts anew. Its architecture is taken over.
        dataset: with the splits `train` and `validation`.
        reference_split: shows what live input looks like at the time of training; drift is measured against it.
    """

    dataset_version: str
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 3e-3
    workers: int = 2
    seed: int = 0
    patience: int = 5
    architecture: str = "lstm"
    hidden: int = 64
    layers: int = 1
    warm_start_run: str = ""
    dataset: str = DATASET
    reference_split: str = "train"

    def plan(self) -> TorchPlan:
        """How `semr.training.torch` is to train.

        Raises:
            InvalidInputError: a number cannot be.
        """
        return TorchPlan(
            epochs=self.epochs,
            batch_size=self.batch_size,
            workers=self.workers,
            seed=self.seed,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )


def train(config: TrainConfig) -> None:
    """Train; the job's MLflow run holds parameters, learning curve, system metrics and the model."""
    import mlflow  # noqa: PLC0415 - not needed by Ray Train's workers, which import this module too

    from semr.tracking import DATASET_TAG  # noqa: PLC0415

    store = ObjectStore.from_settings()
    dataset = store.dataset(config.dataset, config.dataset_version)
    windows, scaling = read_metadata(dataset.metadata)
    plan = config.plan()
    with tracked_run(EXPERIMENT, "train", system_metrics=True) as run_id:
        chosen = _architecture(config)
        network = ModelConfig(
            chosen["architecture"], windows.steps, len(windows.columns), int(chosen["hidden"]), int(chosen["layers"])
        )
        mlflow.log_params({**asdict(config), **chosen})
        mlflow.set_tags(
            {DATASET_TAG: dataset.version, "semr.dataset.uri": dataset.uri, "semr.dataset.source": dataset.source}
        )
        task = TorchTask(
            build=functools.partial(build, network, config.warm_start_run),
            to_example=to_example,
            # Of large errors, as bursts bring, less is made than by the square.
            loss="smooth_l1_loss",
            serve=functools.partial(serve, scaling),
            to_served=functools.partial(to_raw, windows, scaling),
            describe=describe,
        )
        metrics = fit(task, dataset, plan, run_id)
        log_reference_window(run_id, _reference_inputs(store, dataset, config.reference_split), "windows")
        print(f"run {run_id}: {metrics}")


def build(config: ModelConfig, warm_start_run: str) -> nn.Module:
    """A new network, or the one of a run."""
    network = build_model(config)
    if warm_start_run:
        network.load_state_dict(load_weights(warm_start_run))
    return network


def serve(scaling: Scaling, network: nn.Module) -> nn.Module:
    """The network as it is served; see `model.served_model`."""
    return served_model(network, scaling)


def to_raw(windows: WindowPlan, scaling: Scaling, example: Example) -> Example:
    """Scaled, flat windows and targets as clients send and get them: (rows, steps, columns) and (rows, columns)."""
    inputs, targets = example
    shaped = inputs.reshape(-1, windows.steps, len(windows.columns))
    return scaling.unscale(shaped).astype(np.float32), scaling.unscale(targets).astype(np.float32)


def describe(outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> dict[str, str]:
    """The error of each column up to which a forecast counts as right."""
    tolerance = np.quantile(np.abs(outputs - targets), _RIGHT_SHARE, axis=0)
    return {TOLERANCE_KEY: ",".join(f"{each:.6g}" for each in tolerance)}


def _architecture(config: TrainConfig) -> dict[str, str]:
    """Architecture, hidden and layers, of the run that is started from."""
    names = ("architecture", "hidden", "layers")
    if not config.warm_start_run:
        return {name: str(getattr(config, name)) for name in names}
    from semr import tracking  # noqa: PLC0415

    params = tracking.connect().get_run(config.warm_start_run).data.params
    return {name: params[name] for name in names}


def _reference_inputs(store: ObjectStore, dataset: DatasetVersion, split: str) -> npt.NDArray[np.float32]:
    """Windows of the split, evenly over its time and cells, as the server will see inputs."""
    windows, scaling = read_metadata(dataset.metadata)
    column = store.read(dataset, split, ["window"])["window"].combine_chunks()
    flat = column.flatten().to_numpy().reshape(len(column), -1)
    chosen = flat[:: max(1, len(flat) // _REFERENCE_ROWS)]
    inputs, _ = to_raw(windows, scaling, (chosen, np.zeros((len(chosen), len(windows.columns)), np.float32)))
    return np.asarray(inputs, np.float32)


if __name__ == "__main__":
    sys.exit(job_main(train, TrainConfig))
