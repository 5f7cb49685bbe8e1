"""Data-parallel training of PyTorch models on Ray Train: TorchTrainer, DistributedDataParallel, gloo.

Every worker holds the whole model and its own share of the data; gradients are averaged before each step (Li et al., "PyTorch
Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020). A share that fits stays in memory as two tensors,
of which batches are rows: small models spend their time in data loaders otherwise.

Checkpoints go to the object store, at most one every few seconds, since one costs more than an epoch on little data. A worker
that dies makes Ray Train start the group again from the last one. Training ends early when the validation loss no longer
falls, and the model of the best epoch is logged.
"""

from __future__ import annotations

import copy
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError
from semr.job_entry import give_way_to_serving
from semr.storage import DatasetVersion
from semr.training.driver import (
    SPLITS,
    TrainingFailedError,
    TrainingPlan,
    check_servers,
    log_curve,
    read_shard,
    run_workers,
    say_epoch,
)
from semr.training.shard import Batch, Example, Shard
from semr.training.torch_group import join_torch_workers, trainer_options

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["TorchPlan", "TorchTask", "TrainingFailedError", "fit", "load_weights"]

#: Artifact of the run: the state of the network that was trained, to start another training from.
WEIGHTS_FILE = "weights/state.pt"

_CHECKPOINT_FILE = "state.pt"
_CHECKPOINT_SECONDS = 5.0
_EVALUATION_BATCH = 8192
_EXAMPLE_ROWS = 8
# An epoch that is better by less than this share of the loss is not better.
_LEAST_GAIN = 1e-4


@dataclass(frozen=True)
class TorchPlan(TrainingPlan):
    """How to train a PyTorch model.

    Attributes:
        learning_rate: of Adam in the beginning; it falls to a fiftieth on a cosine.
        patience: epochs without a lower validation loss after which training ends; 0 never ends early.
    """

    learning_rate: float = 1e-3
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learning_rate > 0 or self.patience < 0:
            raise InvalidInputError("learning_rate must be above 0, patience not negative.")


@dataclass(frozen=True)
class TorchTask:
    """What to train; every function is importable by name from every worker.

    Attributes:
        build: returns the network, inputs (batch, ...) to outputs (batch, ...).
        to_example: turns a batch of columns into inputs and targets, float32, first axis the batch.
        loss: name of the loss in `torch.nn.functional`, of outputs and targets.
        serve: makes of the trained network the module that is logged.
        to_served: inputs and targets of examples as that module takes and gives them.
        describe: metadata of the logged model, from its outputs (rows, ...) and targets (rows, ...) on validation examples.
    """

    build: Callable[[], nn.Module]
    to_example: Callable[[Batch], Example]
    loss: str
    serve: Callable[[nn.Module], nn.Module]
    to_served: Callable[[Example], Example]
    describe: Callable[[npt.NDArray[Any], npt.NDArray[Any]], dict[str, str]]


def fit(task: TorchTask, dataset: DatasetVersion, plan: TorchPlan, run_id: str) -> dict[str, float]:
    """Train on the splits `train` and `validation` of a dataset version and log the model to an MLflow run.

    To be called from the driver of a Ray job. The learning curve is logged epoch by epoch, the model at the end under the
    name `model` with signature, input example, pinned requirements and ONNX form, the weights as artifact `WEIGHTS_FILE`.

    Returns:
        Metrics of the last epoch, averaged over the workers.

    Raises:
        InvalidInputError: a split is missing or has fewer rows than workers.
        DependencyUnavailableError: the object store or MLflow is away.
        TrainingFailedError: every other failure, after `plan.max_restarts` restarts.
    """
    return run_workers(_train_loop, {"task": task}, dataset, plan, run_id, trainer_options())


def load_weights(run_id: str) -> dict[str, torch.Tensor]:
    """The state that a run's network had when it was logged."""
    import mlflow  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415

    with tracking.named_errors(), tempfile.TemporaryDirectory(prefix="semr-weights-") as folder:
        tracking.connect()
        path = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{WEIGHTS_FILE}", dst_path=folder)
        state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
        return state


@dataclass
class _Progress:
    """What a checkpoint holds beside the states of network and optimizer."""

    epochs_done: int = 0
    best_loss: float = float("inf")
    epochs_since: int = 0
    best_state: dict[str, Any] = field(default_factory=dict)

    def note(self, loss: float, network: nn.Module) -> None:
        self.epochs_done += 1
        self.epochs_since += 1
        if loss < self.best_loss * (1 - _LEAST_GAIN) or not self.best_state:
            self.best_loss, self.epochs_since = loss, 0
            self.best_state = copy.deepcopy(network.state_dict())


def _train_loop(config: dict[str, Any]) -> None:
    """What each worker runs; `config` is the configuration of `run_workers`."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train has set it to INFO, and tells of every report
    give_way_to_serving()
    check_servers(config["run_id"])
    task: TorchTask = config["task"]
    # Ray Data needs seconds to start, and so does PyTorch: at once.
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        reading = {split: read_shard(reader, split, task.to_example, config["rows"]) for split in SPLITS}
        import torch  # noqa: PLC0415

        torch.set_num_threads(1)  # a worker is one logical CPU
        shards = {split: shard.result() for split, shard in reading.items()}
    with join_torch_workers() as (rank, size):
        _Training(config, task, shards, rank, size).run()


class _Training:
    """One worker's part in the training."""

    def __init__(self, config: dict[str, Any], task: TorchTask, shards: dict[str, Shard], rank: int, size: int) -> None:
        import torch  # noqa: PLC0415

        torch.manual_seed(config["seed"])
        self.config, self.task, self.rank, self.size = config, task, rank, size
        self.batches = {split: _Batches(shard, config["seed"] * 1000 + rank) for split, shard in shards.items()}
        self.network = task.build()
        self.loss: Callable[..., torch.Tensor] = getattr(torch.nn.functional, task.loss)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config["learning_rate"])
        # Workers whose shares differ by a row would wait for each other for ever.
        rows = torch.tensor([shards["train"].rows], dtype=torch.int64)
        torch.distributed.all_reduce(rows, torch.distributed.ReduceOp.MIN)
        self.steps = max(1, -(-int(rows) // config["batch_size"]))
        total = self.steps * config["epochs"]
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, total, eta_min=config["learning_rate"] / 50
        )
        self.progress = _Progress()
        self.last_checkpoint = time.monotonic()

    def run(self) -> None:
        """All epochs, and the model into the run."""
        import torch  # noqa: PLC0415

        self._restore()
        parallel = torch.nn.parallel.DistributedDataParallel(self.network) if self.size > 1 else self.network
        config, progress = self.config, self.progress
        metrics: dict[str, float] = {}
        while progress.epochs_done < config["epochs"] and not self._is_over():
            started = time.monotonic()
            train_loss = self._epoch(parallel)
            metrics, is_checkpoint_due = self._averaged(train_loss, self._validate())
            progress.note(metrics["val_loss"], self.network)
            if self.rank == 0:
                say_epoch(progress.epochs_done, config["epochs"], metrics, time.monotonic() - started)
                log_curve(config["run_id"], metrics, progress.epochs_done)
            if is_checkpoint_due:
                self._checkpoint(metrics)
        self._checkpoint(metrics or {"val_loss": progress.best_loss})
        self.network.load_state_dict(progress.best_state)
        if self.rank == 0:
            if progress.epochs_since:
                best = progress.epochs_done - progress.epochs_since
                print(f"the model of epoch {best} is kept, val_loss {progress.best_loss:.4f}", flush=True)
            self._log_model()

    def _is_over(self) -> bool:
        return bool(0 < self.config["patience"] <= self.progress.epochs_since)

    def _epoch(self, parallel: nn.Module) -> float:
        import torch  # noqa: PLC0415

        parallel.train()
        total = torch.zeros(())
        batches = self.batches["train"].shuffled(self.config["batch_size"], self.progress.epochs_done)
        for inputs, targets in itertools.islice(batches, self.steps):
            self.optimizer.zero_grad()
            loss = self.loss(parallel(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach()
        return float(total / self.steps)

    def _validate(self) -> tuple[float, int]:
        """Sum of the losses over this worker's rows, and their number."""
        import torch  # noqa: PLC0415

        self.network.eval()
        total, rows = 0.0, 0
        with torch.inference_mode():
            for inputs, targets in self.batches["validation"].in_order(_EVALUATION_BATCH):
                total += float(self.loss(self.network(inputs), targets)) * len(targets)
                rows += len(targets)
        return total, rows

    def _averaged(self, train_loss: float, validation: tuple[float, int]) -> tuple[dict[str, float], bool]:
        """Metrics over all workers, and whether a checkpoint is due, which the first worker's clock says."""
        import torch  # noqa: PLC0415

        is_due = self.rank == 0 and time.monotonic() - self.last_checkpoint >= _CHECKPOINT_SECONDS
        numbers = torch.tensor([train_loss, *validation, float(is_due)], dtype=torch.float64)
        torch.distributed.all_reduce(numbers)
        loss, total, rows, due = numbers.tolist()
        return {"loss": loss / self.size, "val_loss": total / rows}, bool(due)

    def _checkpoint(self, metrics: dict[str, float]) -> None:
        """Every worker takes part; the first one's state is kept."""
        import ray.train  # noqa: PLC0415
        import torch  # noqa: PLC0415

        self.last_checkpoint = time.monotonic()
        if self.rank != 0:
            ray.train.report(metrics)
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
        }
        with tempfile.TemporaryDirectory(prefix="semr-checkpoint-") as folder:
            torch.save(state, Path(folder, _CHECKPOINT_FILE))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _restore(self) -> None:
        import ray.train  # noqa: PLC0415
        import torch  # noqa: PLC0415

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, _CHECKPOINT_FILE), weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.progress = _Progress(**state["progress"])

    def _log_model(self) -> None:
        import mlflow.pytorch  # noqa: PLC0415
        import torch  # noqa: PLC0415
        from mlflow.models import infer_signature  # noqa: PLC0415

        from semr import tracking  # noqa: PLC0415
        from semr.inference.runtime import ModelLoadError, onnx_export  # noqa: PLC0415

        served = self.task.serve(self.network).eval()
        inputs, targets = self.task.to_served(self.batches["validation"].head(_EVALUATION_BATCH))
        with torch.inference_mode():
            outputs = served(torch.from_numpy(inputs)).numpy()
        # Fewer than two would fix the batch size when the model is exported.
        example = np.resize(inputs, (_EXAMPLE_ROWS, *inputs.shape[1:]))
        # It complains about a missing pip, which environments made by uv do not have.
        logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
        with tracking.named_errors(), tempfile.TemporaryDirectory(prefix="semr-weights-") as folder:
            tracking.connect()
            weights = Path(folder, Path(WEIGHTS_FILE).name)
            torch.save(self.network.state_dict(), weights)
            signature = infer_signature(example, outputs[:1])
            with mlflow.start_run(run_id=self.config["run_id"]), warnings.catch_warnings():
                # Of the list in which PyTorch's recurrent layers keep their own weights.
                warnings.filterwarnings("ignore", "The tensor attributes")
                mlflow.log_artifact(str(weights), str(Path(WEIGHTS_FILE).parent))
                info = mlflow.pytorch.log_model(
                    served,
                    name="model",
                    signature=signature,
                    input_example=example,
                    metadata=self.task.describe(outputs, targets),
                    # Without code of the example: a server needs PyTorch alone.
                    serialization_format="pt2",
                    pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
                )
            if onnx_export.can_convert("pytorch"):
                try:
                    onnx_export.ship_torch(served, signature, example, info.model_id)
                except ModelLoadError as error:
                    # Servers compute with PyTorch then, slower and with more memory.
                    logging.getLogger(__name__).warning("the model ships no ONNX form: %s", error)


class _Batches:
    """A share as batches of tensors."""

    def __init__(self, shard: Shard, seed: int) -> None:
        import torch  # noqa: PLC0415

        self._shard, self._seed = shard, seed
        self._whole = tuple(map(torch.from_numpy, shard.arrays)) if shard.arrays is not None else None

    def shuffled(self, batch_size: int, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pass in an order of the epoch's own; the last batch is filled up from the next pass."""
        import torch  # noqa: PLC0415

        seed = self._seed + epoch * 7919  # a prime: no two workers come to the same order one epoch apart
        if self._whole is None:
            stream = itertools.chain(
                self._shard.stream(batch_size, shuffle_seed=seed), self._shard.stream(batch_size, shuffle_seed=seed + 1)
            )
            yield from (tuple(map(torch.from_numpy, each)) for each in stream)
            return
        inputs, targets = self._whole
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
        for chosen in itertools.chain(order.split(batch_size), order.split(batch_size)):
            yield inputs[chosen], targets[chosen]

    def in_order(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pass as the rows come."""
        import torch  # noqa: PLC0415

        if self._whole is None:
            yield from (tuple(map(torch.from_numpy, each)) for each in self._shard.stream(batch_size))
            return
        inputs, targets = self._whole
        yield from zip(inputs.split(batch_size), targets.split(batch_size), strict=True)

    def head(self, rows: int) -> Example:
        """The first rows, at most so many."""
        inputs, targets = next(self.in_order(rows))
        return inputs.numpy(), targets.numpy()
