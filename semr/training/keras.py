"""Data-parallel training of Keras 3 models (TensorFlow backend) on Ray Train.

Every worker holds the whole model, `fit`s it on its own shard of the data, and averages gradients with the others before
each optimizer step, so that the weights stay equal (synchronous data parallelism: Dean et al., "Large Scale Distributed
Deep Networks", NIPS 2012, without its parameter server; ring all-reduce as in Patarasuk and Yuan, JPDC 2009).

Why not `MultiWorkerMirroredStrategy` with `fit`: Keras 3 does not support it (it fails on PerReplica values). The strategy
is used for what does work, the cluster of TensorFlow servers and its collective operations, and the gradients are reduced
by one collective a step over all of them as one flat vector.

Each epoch ends with a checkpoint in the object store. A worker that dies makes Ray Train start the group again from the
last one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError, SemrError
from semr.settings import get_settings
from semr.storage import DatasetVersion, ObjectStore

if TYPE_CHECKING:
    import keras

Batch = Mapping[str, npt.NDArray[Any]]
Example = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]

_MODEL_FILE = "model.keras"
_STATE_FILE = "state.json"
# Keys of the collective operations: any constants, the same in every worker, different for tensors of different shape.
_GROUP_KEY = 1
_GRADIENTS_KEY = 1
_METRICS_KEY = 2


class TrainingFailedError(SemrError):
    """Training ended without a model, after the allowed number of restarts."""


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    Attributes:
        epochs: passes over the training split.
        batch_size: examples per worker and step; the effective batch is this times `workers`.
        workers: Ray Train workers, one logical CPU each.
        seed: of weights and shuffling.
        max_restarts: how often the worker group may be started again after a failure.
    """

    epochs: int
    batch_size: int
    workers: int
    seed: int = 0
    max_restarts: int = 3

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("workers", 1), ("max_restarts", 0)):
            value = getattr(self, name)
            if value < least:
                raise InvalidInputError(f"{name} must be at least {least}, not {value}.")


def fit(
    build_model: Callable[[], keras.Model],
    to_example: Callable[[Batch], Example],
    dataset: DatasetVersion,
    plan: TrainingPlan,
    run_id: str,
) -> dict[str, float]:
    """Train the model on the splits `train` and `validation` of a dataset version and log it to an MLflow run.

    To be called from the driver of a Ray job. The learning curve is logged epoch by epoch, the model at the end under the
    name `model` with signature, input example and pinned requirements.

    Args:
        build_model: returns a compiled model; importable by name from every worker.
        to_example: turns a batch of columns into inputs (float32, first axis the batch) and targets; likewise.
        dataset: version with the splits `train` and `validation`.
        plan: how to train.
        run_id: MLflow run to log to.

    Returns:
        The last epoch's metrics, averaged over the workers.

    Raises:
        InvalidInputError: a split is missing or has fewer rows than workers.
        DependencyUnavailableError: the object store or MLflow is away.
        TrainingFailedError: every other failure, after `plan.max_restarts` restarts.
    """
    import ray.data  # noqa: PLC0415 - Ray takes seconds to import; only a job's driver needs it
    import ray.train  # noqa: PLC0415
    from ray.train.tensorflow import TensorflowTrainer  # noqa: PLC0415

    store = ObjectStore.from_settings()
    store.check()
    for split in ("train", "validation"):
        rows = dataset.splits.get(split, 0)
        if rows < plan.workers:
            raise InvalidInputError(
                f"Split {split!r} of {dataset.uri} has {rows} rows; {plan.workers} workers need more."
            )
    trainer = TensorflowTrainer(
        _train_loop,
        train_loop_config={
            **asdict(plan),
            "run_id": run_id,
            "build_model": build_model,
            "to_example": to_example,
            "train_rows": dataset.splits["train"],
        },
        scaling_config=ray.train.ScalingConfig(num_workers=plan.workers),
        datasets={
            split: ray.data.read_parquet(store.paths(dataset, split), filesystem=store.filesystem)
            for split in ("train", "validation")
        },
        run_config=ray.train.RunConfig(
            name=run_id,
            storage_path=f"{get_settings().checkpoints_bucket}/{dataset.name}",
            storage_filesystem=store.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=plan.max_restarts),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        result = trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError, OSError) as error:
        store.check()  # a dead object store is the likeliest cause: name it rather than Ray's last symptom
        raise TrainingFailedError(_root_cause(error)) from error
    return {name: float(value) for name, value in (result.metrics or {}).items()}


def _train_loop(config: dict[str, Any]) -> None:
    """What each worker runs; `config` is the `train_loop_config` of `fit`."""
    import ray.train  # noqa: PLC0415

    context = ray.train.get_context()
    workers, rank = context.get_world_size(), context.get_world_rank()
    group = _WorkerGroup(workers)

    import keras  # noqa: PLC0415 - after TensorFlow has joined the group
    import tensorflow as tf  # noqa: PLC0415

    keras.utils.set_random_seed(config["seed"])
    checkpoint = ray.train.get_checkpoint()
    model, first_epoch = _restore(checkpoint) if checkpoint else (config["build_model"](), 0)
    group.average_gradients(model.optimizer)

    to_example = config["to_example"]
    shards = {split: ray.train.get_dataset_shard(split) for split in ("train", "validation")}
    example_x, example_y = to_example(next(iter(shards["validation"].iter_batches(batch_size=2))))
    signature = (_any_batch(tf, example_x), _any_batch(tf, example_y))
    epoch = first_epoch

    def train_batches() -> Iterator[Example]:
        # The buffer holds a worker's whole shard of a small dataset and a window of 10,000 rows of a large one.
        rows = min(10_000, config["train_rows"] // workers)
        yield from map(
            to_example,
            shards["train"].iter_batches(
                batch_size=config["batch_size"],
                local_shuffle_buffer_size=rows,
                local_shuffle_seed=config["seed"] + epoch,
            ),
        )

    def validation_batches() -> Iterator[Example]:
        yield from map(to_example, shards["validation"].iter_batches(batch_size=256))

    class EpochEnd(keras.callbacks.Callback):  # type: ignore[misc,unused-ignore]
        def on_epoch_end(self, index: int, logs: dict[str, float] | None = None) -> None:
            nonlocal epoch
            metrics = group.average(logs or {})
            _report(model, index, metrics, config["run_id"] if rank == 0 else None)
            epoch = index + 1

    model.fit(
        tf.data.Dataset.from_generator(train_batches, output_signature=signature).prefetch(2),
        validation_data=tf.data.Dataset.from_generator(validation_batches, output_signature=signature),
        initial_epoch=first_epoch,
        epochs=config["epochs"],
        callbacks=[EpochEnd()],
        shuffle=False,  # the batches come shuffled
        verbose=0,
    )
    if rank == 0:
        _log_model(model, example_x, config["run_id"])


class _WorkerGroup:
    """This worker's membership in the group of TensorFlow servers that Ray Train has described in `TF_CONFIG`."""

    def __init__(self, workers: int) -> None:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ["TF_USE_LEGACY_KERAS"] = "0"  # Ray Train asks for Keras 2, which this is not
        import tensorflow as tf  # noqa: PLC0415

        self._tf = tf
        self._workers = workers
        # Must outlive training: it owns the server. Collectives need it before any other operation runs.
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy() if workers > 1 else None

    def average_gradients(self, optimizer: keras.Optimizer) -> None:
        """Make `optimizer` average the gradients of all workers before each step.

        The instance's `apply` is replaced, not its class, so that the optimizer is saved under its own name.
        """
        if self._workers == 1:
            return
        tf = self._tf
        plain_apply = optimizer.apply

        def apply(gradients: list[Any], trainable_variables: list[Any] | None = None) -> None:
            flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
            sizes = [gradient.shape.num_elements() for gradient in gradients]
            averaged = tf.split(self._sum(flat, _GRADIENTS_KEY) / self._workers, sizes)
            plain_apply(
                [tf.reshape(part, gradient.shape) for part, gradient in zip(averaged, gradients, strict=True)],
                trainable_variables,
            )

        optimizer.apply = apply

    def average(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Mean over the workers of each metric; right for means over shards of equal size, which Ray Train's are."""
        if self._workers == 1:
            return dict(metrics)
        names = sorted(metrics)
        values = self._tf.constant([metrics[name] for name in names], dtype=self._tf.float32)
        means = self._sum(values, _METRICS_KEY).numpy() / self._workers
        return dict(zip(names, means.tolist(), strict=True))

    def _sum(self, vector: Any, key: int) -> Any:  # noqa: ANN401 - TensorFlow's tensors
        return self._tf.raw_ops.CollectiveReduceV2(
            input=vector,
            group_size=self._workers,
            group_key=_GROUP_KEY,
            instance_key=key,
            ordering_token=[],
            merge_op="Add",
            final_op="Id",
            communication_hint="RING",
        )


def _any_batch(tf: Any, array: npt.NDArray[Any]) -> Any:  # noqa: ANN401 - TensorFlow's module and types
    return tf.TensorSpec(shape=(None, *array.shape[1:]), dtype=array.dtype)


def _report(model: keras.Model, epoch: int, metrics: dict[str, float], run_id: str | None) -> None:
    """End an epoch: every worker takes part; the one with `run_id` logs the curve and keeps the checkpoint."""
    import ray.train  # noqa: PLC0415

    if run_id is None:
        ray.train.report(metrics)
        return
    from semr import tracking  # noqa: PLC0415

    with tracking.named_errors():
        client = tracking.connect()
        for name, value in metrics.items():
            client.log_metric(run_id, name, value, step=epoch + 1)
    with tempfile.TemporaryDirectory(prefix="semr-checkpoint-") as folder:
        model.save(Path(folder, _MODEL_FILE))
        Path(folder, _STATE_FILE).write_text(json.dumps({"epochs_done": epoch + 1}))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _restore(checkpoint: Any) -> tuple[keras.Model, int]:  # noqa: ANN401 - Ray's Checkpoint
    """Model with its optimizer's state, and the number of epochs that it has behind it."""
    import keras  # noqa: PLC0415

    with checkpoint.as_directory() as folder:
        model = keras.models.load_model(Path(folder, _MODEL_FILE))
        state = json.loads(Path(folder, _STATE_FILE).read_text())
    return model, int(state["epochs_done"])


def _log_model(model: keras.Model, example: npt.NDArray[np.float32], run_id: str) -> None:
    import keras  # noqa: PLC0415
    import mlflow.tensorflow  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415
    from mlflow.models import infer_signature  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415

    with tracking.named_errors():
        tracking.connect()
        with mlflow.start_run(run_id=run_id):
            mlflow.tensorflow.log_model(
                model,
                name="model",
                signature=infer_signature(example, model.predict_on_batch(example)),
                input_example=example,
                # Given, not inferred: inferring loads the model in a further process.
                pip_requirements=[
                    f"keras=={keras.__version__}",
                    f"tensorflow=={tf.__version__}",
                    f"numpy=={np.__version__}",
                ],
            )


def _root_cause(error: BaseException) -> str:
    """The last line of the innermost error's text: Ray wraps a worker's exception several times with its stack trace."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"Training failed: {lines[-1] if lines else type(error).__name__}"
