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
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
from semr.training.group import WorkerGroup, join_train_workers
from semr.training.quiet_keras import import_keras
from semr.training.shard import Batch, Example, Shard

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

_MODEL_FILE = "model.keras"
_STATE_FILE = "state.json"
__all__ = ["TrainingFailedError", "TrainingPlan", "fit"]


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
    # Not TensorflowTrainer: it loads TensorFlow in the driver and in the controller, 6 s each, to start its servers.
    more = {"build_model": build_model, "to_example": to_example, "metadata": dict(metadata or {})}
    return run_workers(_train_loop, more, dataset, plan, run_id)


def _train_loop(config: dict[str, Any]) -> None:
    """What each worker runs; `config` is the `train_loop_config` of `fit`."""
    import ray.train  # noqa: PLC0415

    logging.getLogger().setLevel(logging.WARNING)  # Ray Train has set it to INFO, and tells of every report
    give_way_to_serving()
    check_servers(config["run_id"])
    # Ray Data needs seconds to start, and so does TensorFlow: at once.
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        reading = {split: read_shard(reader, split, config["to_example"], config["rows"]) for split in SPLITS}
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
                say_epoch(epoch, config["epochs"], metrics, time.monotonic() - self.started)
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
    log_curve(run_id, metrics, epochs_done)
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
