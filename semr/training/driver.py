"""What training with any framework has in common: the plan, the Ray Train run around the workers, and how it fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from semr.errors import InvalidInputError, SemrError
from semr.job_entry import join_cluster
from semr.settings import get_settings
from semr.storage import DatasetVersion, ObjectStore
from semr.training.shard import Batch, Example, Shard

# Ray Train's controller takes one report of each worker a look and looks every 2 s, so that no epoch would be shorter.
_POLL = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
# Logical CPUs of a task that reads data. Little, since it mostly waits for the object store, and since workers that occupy
# the rest of a small cluster wait for it: with one CPU each they would wait for ever.
_CPUS_TO_READ = 0.1

SPLITS = ("train", "validation")


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
        return max(1, self.epochs * -(-(rows // self.workers) // self.batch_size))


def run_workers(
    train_loop: Callable[[dict[str, Any]], None],
    more: Mapping[str, Any],
    dataset: DatasetVersion,
    plan: TrainingPlan,
    run_id: str,
    trainer_options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Run `train_loop` on the workers of a Ray Train group, from the driver of a Ray job.

    Args:
        train_loop: called on each worker with the fields of `plan`, `run_id`, `rows` (per split), and `more`.
        more: of the configuration, importable by name from every worker.
        dataset: version with the splits `train` and `validation`.
        plan: how to train.
        run_id: MLflow run, whose name the checkpoints have too.
        trainer_options: `trainer`, the class (default: DataParallelTrainer), and further arguments for it.

    Returns:
        The metrics of the last report.

    Raises:
        InvalidInputError: a split is missing or has fewer rows than workers.
        DependencyUnavailableError: the object store or MLflow is away.
        TrainingFailedError: every other failure, after `plan.max_restarts` restarts.
    """
    import ray.data  # noqa: PLC0415 - Ray takes seconds to import; only a job's driver needs it
    import ray.train  # noqa: PLC0415
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # noqa: PLC0415

    store = ObjectStore.from_settings()
    for split in SPLITS:
        rows = dataset.splits.get(split, 0)
        if rows < plan.workers:
            raise InvalidInputError(
                f"Split {split!r} of {dataset.uri} has {rows} rows; {plan.workers} workers need more."
            )
    join_cluster()
    os.environ.setdefault(*_POLL)
    options = dict(trainer_options or {})
    trainer = options.pop("trainer", DataParallelTrainer)(
        train_loop,
        train_loop_config={**asdict(plan), "run_id": run_id, "rows": dict(dataset.splits), **more},
        scaling_config=ray.train.ScalingConfig(num_workers=plan.workers),
        datasets={
            split: ray.data.read_parquet(
                store.paths(dataset, split),
                filesystem=store.filesystem,
                ray_remote_args={"num_cpus": _CPUS_TO_READ},
            )
            for split in SPLITS
        },
        run_config=ray.train.RunConfig(
            name=run_id,
            storage_path=f"{get_settings().checkpoints_bucket}/{dataset.name}",
            storage_filesystem=store.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=plan.max_restarts),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
        **options,
    )
    try:
        result = trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError, OSError) as error:
        # A dead server is the likeliest cause: name it rather than Ray's last symptom.
        check_servers(run_id)
        raise TrainingFailedError(_root_cause(error)) from error
    return {name: float(value) for name, value in (result.metrics or {}).items()}


def check_servers(run_id: str) -> None:
    """Raise `DependencyUnavailableError` for a server that is away; in a restart this comes before all that takes time."""
    from semr import tracking  # noqa: PLC0415

    ObjectStore.from_settings().check()
    with tracking.named_errors():
        tracking.connect().get_run(run_id)


def read_shard(
    reader: ThreadPoolExecutor, split: str, to_example: Callable[[Batch], Example], rows: Mapping[str, int]
) -> Future[Shard]:
    """Begin to read this worker's share of a split."""
    import ray.train  # noqa: PLC0415

    workers = ray.train.get_context().get_world_size()
    return reader.submit(Shard, ray.train.get_dataset_shard(split), to_example, rows[split] // workers)


def log_curve(run_id: str, metrics: Mapping[str, float], epoch: int) -> None:
    """The metrics of an epoch to the learning curve of the run."""
    from mlflow.entities import Metric  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415

    with tracking.named_errors():
        now = int(time.time() * 1000)
        curve = [Metric(name, value, now, epoch) for name, value in metrics.items()]
        tracking.connect().log_batch(run_id, metrics=curve)


def say_epoch(epoch: int, epochs: int, metrics: Mapping[str, float], seconds: float) -> None:
    """The line that an epoch leaves in the log."""
    numbers = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    print(f"epoch {epoch}/{epochs} {numbers} ({seconds:.2f} s)", flush=True)


def _root_cause(error: BaseException) -> str:
    """The last line of the innermost error's text: Ray wraps a worker's exception several times with its stack trace."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"Training failed: {lines[-1] if lines else type(error).__name__}"
