"""Data-parallel training of Keras 3 models (TensorFlow backend) on Ray Train.

Every worker holds the whole model, `fit`s it on its own shard of the data, and averages gradients with the others before
each optimizer step, so that the weights stay equal (synchronous data parallelism: Dean et al., "Large Scale Distributed
Deep Networks", NIPS 2012).

Why not `MultiWorkerMirroredStrategy`: Keras 3 does not support it with `fit` (it fails on PerReplica values), and its servers
listen on every interface; see `semr.training.group`, which averages the gradients of a step as one flat vector.

Each epoch ends with a checkpoint in the object store. A worker that dies makes Ray Train start the group again from the
last one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError, SemrError
from semr.job_entry import give_way_to_serving, join_cluster
from semr.settings import get_settings
from semr.storage import DatasetVersion, ObjectStore
from semr.training.group import WorkerGroup, join_train_workers
from semr.training.quiet_keras import import_keras
from semr.training.shard import Batch, Example, Shard

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Ray Train's controller takes one report of each worker a look and looks every 2 s, so that no epoch would be shorter.
_POLL = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
_MODEL_FILE = "model.keras"
_STATE_FILE = "state.json"
# Logical CPUs of a task that reads data. Little, since it mostly waits for the object store, and since workers that occupy
# the rest of a small cluster wait for it: with one CPU each they would wait for ever.
_CPUS_TO_READ = 0.1


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

    def steps(self, rows: int) -> int:
        """Optimizer steps of the whole training on a training split of `rows` rows; at least 1."""
        return max(1, self.epochs * math.ceil(rows // self.workers / self.batch_size))


def fit(
    build_model: Callable[[], keras.Model],
    to_example: Callable[[Batch], Example],
    dataset: DatasetVersion,
    plan: TrainingPlan,
    run_id: str,
    metadata: Mapping[str, str] | None = None,
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
        metadata: what the model declares about its serving, by the keys of `semr.inference.runtime.loading`.

    Returns:
        The last epoch's metrics, averaged over the workers.

    Raises:
        InvalidInputError: a split is missing or has fewer rows than workers.
        DependencyUnavailableError: the object store or MLflow is away.
        TrainingFailedError: every other failure, after `plan.max_restarts` restarts.
    """
    import ray.data  # noqa: PLC0415 - Ray takes seconds to import; only a job's driver needs it
    import ray.train  # noqa: PLC0415
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # noqa: PLC0415

    store = ObjectStore.from_settings()
    for split in ("train", "validation"):
        rows = dataset.splits.get(split, 0)
        if rows < plan.workers:
            raise InvalidInputError(
                f"Split {split!r} of {dataset.uri} has {rows} rows; {plan.workers} workers need more."
            )
    join_cluster()
    os.environ.setdefault(*_POLL)
    # Not TensorflowTrainer: it loads TensorFlow in the driver and in the controller, 6 s each, to start its servers.
    trainer = DataParallelTrainer(
        _train_loop,
        train_loop_config={
            **asdict(plan),
            "run_id": run_id,
            "build_model": build_model,
            "to_example": to_example,
            "rows": dict(dataset.splits),
            "metadata": dict(metadata or {}),
        },
        scaling_config=ray.train.ScalingConfig(num_workers=plan.workers),
        datasets={
            split: ray.data.read_parquet(
                store.paths(dataset, split),
                filesystem=store.filesystem,
                ray_remote_args={"num_cpus": _CPUS_TO_READ},
            )
            for split in ("train", "validation")
        },
        run_config=ray.train.RunConfig(
            name=run_id,
            storage_path=f"{get_settings().checkpoints_bucket}/{dataset.name}",
            storage_filesystem=store.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=plan.max_restarts),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result = trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError, OSError) as error:
        # A dead server is the likeliest cause: name it rather than Ray's last symptom.
        _check_servers(run_id)
        raise TrainingFailedError(_root_cause(error)) from error
    return {name: float(value) for name, value in (result.metrics or {}).items()}


def _check_servers(run_id: str) -> None:
    """Raise `DependencyUnavailableError` for a server that is away; in a restart this comes before all that takes time."""
    from semr import tracking  # noqa: PLC0415

    ObjectStore.from_settings().check()
    with tracking.named_errors():
        tracking.connect().get_run(run_id)


def _train_loop(config: dict[str, Any]) -> None:
    """What each worker runs; `config` is the `train_loop_config` of `fit`."""
    import ray.train  # noqa: PLC0415

    logging.getLogger().setLevel(logging.WARNING)  # Ray Train has set it to INFO, and tells of every report
    give_way_to_serving()
    _check_servers(config["run_id"])
    # Ray Data needs seconds to start, and so does TensorFlow: at once.
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        reading = {split: _read(reader, split, config) for split in ("train", "validation")}
        group = join_train_workers()
        import_keras()
        shards = {split: shard.result() for split, shard in reading.items()}
    import keras  # noqa: PLC0415

    keras.utils.set_random_seed(config["seed"])
    checkpoint = ray.train.get_checkpoint()
    model, first_epoch = _restore(checkpoint) if checkpoint else (config["build_model"](), 0)
    if group.size > 1:
        _average_gradients(model, group)

    example_x, _ = shards["validation"].first
    epoch = first_epoch

    class EpochEnd(keras.callbacks.Callback):  # type: ignore[misc,unused-ignore]
        def on_epoch_begin(self, index: int, logs: dict[str, float] | None = None) -> None:
            self.started = time.monotonic()

        def on_epoch_end(self, index: int, logs: dict[str, float] | None = None) -> None:
            nonlocal epoch
            epoch = index + 1
            metrics = _average(logs or {}, group)
            if group.rank == 0:
                numbers = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                seconds = time.monotonic() - self.started
                print(f"epoch {epoch}/{config['epochs']} {numbers} ({seconds:.1f} s)", flush=True)
            _report(model, epoch, metrics, config["run_id"] if group.rank == 0 else None)

    model.fit(
        _dataset(shards["train"], config["batch_size"], lambda: config["seed"] + epoch),
        validation_data=_dataset(shards["validation"], 256),
        initial_epoch=first_epoch,
        epochs=config["epochs"],
        callbacks=[EpochEnd()],
        shuffle=False,  # the batches come shuffled
        verbose=0,
    )
    group.close()
    if group.rank == 0:
        _log_model(model, example_x, config["run_id"], config["metadata"])


def _read(reader: ThreadPoolExecutor, split: str, config: dict[str, Any]) -> Future[Shard]:
    import ray.train  # noqa: PLC0415

    workers = ray.train.get_context().get_world_size()
    return reader.submit(
        Shard, ray.train.get_dataset_shard(split), config["to_example"], config["rows"][split] // workers
    )


def _average_gradients(model: keras.Model, group: WorkerGroup) -> None:
    """Make the model's optimizer average the gradients of all workers before each step.

    The instance's `apply` is replaced, not its class, so that the optimizer is saved under its own name.
    """
    import tensorflow as tf  # noqa: PLC0415

    optimizer = model.optimizer
    plain_apply = optimizer.apply
    model.jit_compile = False  # XLA compiles no calls of Python functions

    def apply(gradients: list[Any], trainable_variables: list[Any] | None = None) -> None:
        flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
        sizes = [gradient.shape.num_elements() for gradient in gradients]
        averaged = tf.numpy_function(group.mean, [flat], tf.float32, stateful=True)
        averaged.set_shape(flat.shape)
        plain_apply(
            [
                tf.reshape(part, gradient.shape)
                for part, gradient in zip(tf.split(averaged, sizes), gradients, strict=True)
            ],
            trainable_variables,
        )

    optimizer.apply = apply


def _average(metrics: Mapping[str, float], group: WorkerGroup) -> dict[str, float]:
    """Mean over the workers of each metric; right for means over shards of equal size, which Ray Train's are."""
    names = sorted(metrics)
    means = group.mean(np.array([metrics[name] for name in names], dtype=np.float32))
    return dict(zip(names, means.tolist(), strict=True))


def _dataset(shard: Shard, batch_size: int, seed: Callable[[], int] | None = None) -> tf.data.Dataset:
    """The share in batches, each pass shuffled anew when `seed`, asked at the start of each pass if it is streamed, is given.

    What is in memory goes through TensorFlow alone: every batch that Python hands over costs several changes of thread, each
    of which waits for its turn on a machine that serves at the same time.
    """
    import tensorflow as tf  # noqa: PLC0415

    if shard.arrays is not None:
        whole = tf.data.Dataset.from_tensor_slices(shard.arrays)
        if seed is not None:
            whole = whole.shuffle(len(shard.arrays[1]), seed=seed(), reshuffle_each_iteration=True)
        return whole.batch(batch_size).prefetch(2)
    signature = tuple(tf.TensorSpec(shape=(None, *each.shape[1:]), dtype=each.dtype) for each in shard.first)
    batches = tf.data.Dataset.from_generator(
        lambda: shard.stream(batch_size, seed() if seed else None), output_signature=signature
    )
    return batches.prefetch(2)


def _report(model: keras.Model, epochs_done: int, metrics: dict[str, float], run_id: str | None) -> None:
    """End an epoch: every worker takes part; the one with `run_id` logs the curve and keeps the checkpoint."""
    import ray.train  # noqa: PLC0415

    if run_id is None:
        ray.train.report(metrics)
        return
    from mlflow.entities import Metric  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415

    with tracking.named_errors():
        now = int(time.time() * 1000)
        curve = [Metric(name, value, now, epochs_done) for name, value in metrics.items()]
        tracking.connect().log_batch(run_id, metrics=curve)
    with tempfile.TemporaryDirectory(prefix="semr-checkpoint-") as folder:
        model.save(Path(folder, _MODEL_FILE))
        Path(folder, _STATE_FILE).write_text(json.dumps({"epochs_done": epochs_done}))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _restore(checkpoint: Any) -> tuple[keras.Model, int]:  # noqa: ANN401 - Ray's Checkpoint
    """Model with its optimizer's state, and the number of epochs that it has behind it."""
    import keras  # noqa: PLC0415

    with checkpoint.as_directory() as folder:
        model = keras.models.load_model(Path(folder, _MODEL_FILE))
        state = json.loads(Path(folder, _STATE_FILE).read_text())
    return model, int(state["epochs_done"])


def _log_model(model: keras.Model, example: npt.NDArray[np.float32], run_id: str, metadata: Mapping[str, str]) -> None:
    import keras  # noqa: PLC0415
    import mlflow.tensorflow  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415
    from mlflow.models import infer_signature  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415
    from semr.inference.runtime import ModelLoadError, onnx_export  # noqa: PLC0415

    # It complains about a missing pip, which environments made by uv do not have.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    with tracking.named_errors():
        tracking.connect()
        signature = infer_signature(example, model.predict_on_batch(example))
        with mlflow.start_run(run_id=run_id):
            info = mlflow.tensorflow.log_model(
                model,
                name="model",
                signature=signature,
                input_example=example,
                metadata=dict(metadata),
                # Given, not inferred: inferring loads the model in a further process.
                pip_requirements=[
                    f"keras=={keras.__version__}",
                    f"tensorflow=={tf.__version__}",
                    f"numpy=={np.__version__}",
                ],
            )
        if onnx_export.can_convert("keras"):
            try:
                onnx_export.ship_keras(model, signature, example, info.model_id)
            except ModelLoadError as error:
                # Servers compute with TensorFlow then, slower and with more memory.
                logging.getLogger(__name__).warning("the model ships no ONNX form: %s", error)


def _root_cause(error: BaseException) -> str:
    """The last line of the innermost error's text: Ray wraps a worker's exception several times with its stack trace."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"Training failed: {lines[-1] if lines else type(error).__name__}"
