"""The PyTorch training loop in one process: it ends early with the best epoch's weights, and sees each row once an epoch."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest
from local_servers import mlflow_server

from semr import tracking
from semr.settings import get_settings
from semr.training.shard import Batch, Example, Shard

# Triton, which compiles for GPUs, crashes in a process that has loaded TensorFlow for other tests; PyTorch does without.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
torch = pytest.importorskip("torch")

from semr.training.torch import TorchPlan, TorchTask, _Batches, _Training, load_weights  # noqa: E402
from semr.training.torch_group import join_torch_workers  # noqa: E402

ROWS = 2000
BATCH = 64
# Less than the examples of ROWS rows take.
LITTLE_MEMORY = 1000


@dataclass
class Numbers:
    """Batches of columns `x` and `y`, as Ray's iterator gives them; counts the rows that were taken from it."""

    x: np.ndarray
    y: np.ndarray
    taken: int = 0

    def iter_batches(self, *, batch_size: int, **_: Any) -> Iterator[Batch]:
        for start in range(0, len(self.x), batch_size):
            chosen = slice(start, start + batch_size)
            self.taken += len(self.x[chosen])
            yield {"x": self.x[chosen], "y": self.y[chosen]}


def to_example(batch: Batch) -> Example:
    return batch["x"].astype(np.float32)[:, None], batch["y"].astype(np.float32)[:, None]


# --- when training ends -------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """A run after training: its losses by epoch, and its answer to 1."""

    run_id: str
    validation_losses: list[float]
    answer: float


@pytest.fixture(scope="module")
def mlflow_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A tracking server, which the settings of this process name."""
    import mlflow

    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMR_MLFLOW_URI", url)
        get_settings.cache_clear()
        yield
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    get_settings.cache_clear()


def train(plan: TorchPlan) -> Trained:
    """One weight, which begins at 0 and is drawn to 1 by the training split; the validation split wants 0.5."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    def build() -> Any:
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(network.weight)
        return network

    task = TorchTask(
        build=build,
        to_example=to_example,
        loss="mse_loss",
        serve=lambda network: network,
        to_served=lambda example: example,
        describe=lambda outputs, targets: {},
    )
    splits = {"train": Numbers(np.ones(8), np.ones(8)), "validation": Numbers(np.ones(8), np.full(8, 0.5))}
    client = tracking.connect()
    run_id = client.create_run(tracking.experiment_id(client, "torch")).info.run_id

    def work(config: dict[str, Any]) -> None:
        shards = {split: Shard(source, to_example, 8) for split, source in splits.items()}  # type: ignore[arg-type]
        with join_torch_workers() as (rank, size):
            _Training(config, task, shards, rank, size).run()

    # Without workers Ray Train calls the function in this process.
    config = {**asdict(plan), "run_id": run_id}
    trainer = DataParallelTrainer(
        work, train_loop_config=config, scaling_config=ScalingConfig(num_workers=0), run_config=RunConfig(name=run_id)
    )
    trainer.fit()
    (weight,) = load_weights(run_id).values()
    losses = [each.value for each in client.get_metric_history(run_id, "val_loss")]
    return Trained(run_id, losses, float(weight))


@pytest.mark.usefixtures("mlflow_runs")
def test_training_ends_when_it_no_longer_helps_and_keeps_the_best_epoch(capfd: pytest.CaptureFixture[str]) -> None:
    trained = train(TorchPlan(epochs=60, batch_size=8, workers=1, learning_rate=0.1, patience=3))
    best = int(np.argmin(trained.validation_losses))
    assert 2 <= best < 20
    assert len(trained.validation_losses) == best + 1 + 3
    assert (trained.answer - 0.5) ** 2 == pytest.approx(trained.validation_losses[best], rel=1e-4, abs=1e-9)
    assert trained.validation_losses[-1] > 2 * trained.validation_losses[best]
    assert f"the model of epoch {best + 1} is kept" in capfd.readouterr().out
    import mlflow

    (answer,) = mlflow.pyfunc.load_model(f"runs:/{trained.run_id}/model").predict(np.ones((1, 1), np.float32))
    assert float(answer[0]) == pytest.approx(trained.answer, rel=1e-5)


@pytest.mark.usefixtures("mlflow_runs")
def test_without_patience_every_epoch_comes_and_still_the_best_is_kept() -> None:
    trained = train(TorchPlan(epochs=15, batch_size=8, workers=1, learning_rate=0.1, patience=0))
    assert len(trained.validation_losses) == 15
    assert int(np.argmin(trained.validation_losses)) < 12
    assert (trained.answer - 0.5) ** 2 == pytest.approx(min(trained.validation_losses), rel=1e-4, abs=1e-9)


# --- what it is fed -----------------------------------------------------------------------------------------------------


def steps_of(shard: Shard) -> int:
    return -(-shard.rows // BATCH)


def epoch_of(batches: _Batches, shard: Shard, epoch: int) -> list[int]:
    """The rows of one epoch in the order in which they come, as the training loop takes them."""
    rows: list[int] = []
    for inputs, targets in itertools.islice(batches.shuffled(BATCH, epoch), steps_of(shard)):
        assert torch.equal(inputs, targets)
        rows += inputs[:, 0].int().tolist()
    return rows


@pytest.mark.parametrize("memory", [LITTLE_MEMORY, 2**20])
def test_a_share_that_does_not_fit_is_streamed_and_not_loaded(memory: int) -> None:
    source = Numbers(np.arange(ROWS), np.arange(ROWS))
    shard = Shard(source, to_example, ROWS, memory_limit=memory)  # type: ignore[arg-type]
    batches = _Batches(shard, seed=0)
    fits = memory > LITTLE_MEMORY
    assert (shard.arrays is not None) == fits
    source.taken = 0
    coming = batches.shuffled(BATCH, 0)
    next(coming)
    assert source.taken == (0 if fits else BATCH)
    next(coming)
    assert source.taken == (0 if fits else 2 * BATCH)


@pytest.mark.parametrize("memory", [LITTLE_MEMORY, 2**20])
def test_each_of_two_workers_sees_half_of_the_rows_once_an_epoch(ray_data: Any, memory: int) -> None:
    """The shares are those that Ray Train hands out."""
    from ray.train import DataConfig

    numbers = np.arange(ROWS)
    # Of uneven blocks, which have to be divided.
    whole = ray_data.from_numpy([*np.split(numbers, [3, 700, 701, 1500])]).map_batches(
        lambda batch: {"x": batch["data"], "y": batch["data"]}
    )
    shares = DataConfig().configure({"train": whole}, 2, None, None)

    def work(rank: int) -> list[list[int]]:
        shard = Shard(shares[rank]["train"], to_example, ROWS // 2, memory_limit=memory)
        assert (shard.arrays is None) == (memory == LITTLE_MEMORY)
        batches = _Batches(shard, seed=rank)
        return [epoch_of(batches, shard, epoch) for epoch in range(3)]

    with ThreadPoolExecutor(2) as workers:
        first, second = workers.map(work, range(2))
    for of_first, of_second in zip(first, second, strict=True):
        assert len(of_first) == len(of_second) == ROWS // 2
        assert sorted(of_first + of_second) == numbers.tolist()
    assert first[0] != first[1] != first[2]
    assert first[0] != sorted(first[0])
