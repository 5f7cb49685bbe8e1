"""Data-parallel training on a real cluster, with workers that are killed and servers that go away."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import pytest
from faulty_proxy import FaultyProxy
from pyarrow.fs import FileSelector
from stack_tools import RunningStack
from workflow_tools import processes_of_stack, small_dataset, small_qoe_dataset

from semr import tracking
from semr.errors import InvalidInputError
from semr.job_entry import config_argument
from semr.jobs import JOB_ID_VARIABLE, JobFailedError, JobResult, RayJobs
from semr.settings import Settings
from semr.storage import ObjectStore
from workflow_examples.mnist.train import TrainConfig
from workflow_examples.qoe.train import TrainConfig as QoeTrainConfig

pytestmark = pytest.mark.slow

TRAIN = "workflow_examples.mnist.train"
QOE_TRAIN = "workflow_examples.qoe.train"


class Watched:
    """A training job whose log is looked at while it runs; `react` is called once, when `at` has appeared."""

    def __init__(self, stack: RunningStack, at: str, react: Callable[[str], None], module: str = TRAIN) -> None:
        self.jobs = RayJobs(stack.settings)
        self.module = module
        self.lines: list[str] = []
        self._at = at
        self._react = react
        self.job_id = ""

    def run(self, config: object, environment: dict[str, str] | None = None, seconds: float = 240) -> JobResult:
        self.job_id = self.jobs.submit(self.module, config_argument(config), environment=environment)
        return self.jobs.wait(self.job_id, on_line=self._look, timeout_seconds=seconds)

    @property
    def epochs(self) -> list[int]:
        """Epochs in the order in which their lines came."""
        return [int(found.group(1)) for line in self.lines if (found := re.search(r"\bepoch (\d+)/", line))]

    def _look(self, line: str) -> None:
        self.lines.append(line)
        if self._at in line:
            self._at = "\0"
            self._react(self.job_id)


def processes_of_job(stack: RunningStack, job_id: str) -> list[psutil.Process]:
    """The processes that a job has started on the cluster."""
    found = []
    for process in processes_of_stack(stack.folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.environ().get(JOB_ID_VARIABLE) == job_id:
                found.append(process)
    return found


def workers_of(stack: RunningStack, job_id: str) -> list[psutil.Process]:
    """The processes of a job's Ray Train workers."""
    return [each for each in processes_of_job(stack, job_id) if _is_worker(each)]


def _is_worker(process: psutil.Process) -> bool:
    return "RayTrainWorker" in " ".join(process.cmdline())


@dataclass(frozen=True)
class Observed:
    """A training of two epochs: its result, its log, and the sockets that its processes listened on."""

    result: JobResult
    lines: list[str]
    workers: list[psutil.Process]
    listening: list[tuple[str, int]]


@pytest.fixture(scope="module")
def observed(stack: RunningStack) -> Observed:
    workers: list[psutil.Process] = []
    listening: set[tuple[str, int]] = set()
    watched = Watched(stack, "\0", lambda job_id: None)
    ended = threading.Event()

    def look() -> None:
        """All the time: two epochs of few pictures can be over before their first line is read."""
        while not ended.wait(0.2):
            for process in processes_of_job(stack, watched.job_id) if watched.job_id else []:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process not in workers and _is_worker(process):
                        workers.append(process)
                    listening.update(
                        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
                        for connection in process.net_connections("inet")
                        if connection.status == psutil.CONN_LISTEN
                    )

    looking = threading.Thread(target=look)
    looking.start()
    try:
        result = watched.run(TrainConfig(small_dataset(), epochs=2))
    finally:
        ended.set()
        looking.join()
    return Observed(result, watched.lines, workers, sorted(listening))


def test_the_log_is_one_line_an_epoch(observed: Observed) -> None:
    assert len(observed.lines) == 3, observed.lines
    for number, line in enumerate(observed.lines[:2], start=1):
        epoch = rf"epoch {number}/2 accuracy \d\.\d+ loss \d\.\d+ val_accuracy \d\.\d+ val_loss \d\.\d+ \(\d+\.\d\d s\)"
        assert re.search(epoch, line), line
    assert observed.lines[2].startswith("run ")


def test_nothing_listens_beyond_loopback_while_training(observed: Observed) -> None:
    assert len(observed.workers) == 2
    assert observed.listening
    assert [each for each in observed.listening if not ipaddress.ip_address(each[0]).is_loopback] == []


def test_a_run_holds_what_one_asks_of_it_later(stack: RunningStack, observed: Observed) -> None:
    client = tracking.connect(stack.settings)
    assert observed.result.run_id is not None
    run = client.get_run(observed.result.run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["epochs"], run.data.params["workers"]) == ("2", "2")
    assert run.data.tags[tracking.DATASET_TAG] == small_dataset()
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == [1, 2]
    assert any(name.startswith("system/cpu") for name in run.data.metrics)


def test_a_killed_worker_is_replaced_and_goes_on_from_the_checkpoint(stack: RunningStack) -> None:
    killed: list[psutil.Process] = []

    def kill_one(job_id: str) -> None:
        workers = workers_of(stack, job_id)
        assert len(workers) == 2
        killed.append(workers[-1])
        workers[-1].send_signal(signal.SIGKILL)

    watched = Watched(stack, "epoch 4/8", kill_one)
    result = watched.run(TrainConfig(small_dataset(), epochs=8))
    assert killed
    assert not killed[0].is_running() or killed[0].status() == psutil.STATUS_ZOMBIE
    assert result.run_id is not None
    # The epoch in whose course it died may come twice, none before it.
    assert watched.epochs[:4] == [1, 2, 3, 4]
    assert watched.epochs[-1] == 8
    assert len(watched.epochs) <= 10, watched.epochs
    assert watched.epochs.count(1) == watched.epochs.count(2) == watched.epochs.count(3) == 1
    assert sorted(set(watched.epochs)) == list(range(1, 9))
    history = tracking.connect(stack.settings).get_metric_history(result.run_id, "loss")
    assert {metric.step for metric in history} == set(range(1, 9))
    assert history[-1].value < history[0].value / 2


def checkpoints(stack: RunningStack, dataset: str) -> set[str]:
    """Checkpoints in the object store of trainings with PyTorch on the dataset."""
    folder = FileSelector(f"{stack.settings.checkpoints_bucket}/{dataset}", allow_not_found=True, recursive=True)
    files = ObjectStore.from_settings(stack.settings).filesystem.get_file_info(folder)
    return {each.path for each in files if each.base_name == "state.pt"}


def test_a_killed_worker_of_pytorch_is_replaced_and_goes_on_from_the_checkpoint(stack: RunningStack) -> None:
    pytest.importorskip("torch")
    epochs = 300
    known = checkpoints(stack, "qoe")
    killed: list[psutil.Process] = []

    def kill_one(job_id: str) -> None:
        """Checkpoints come every few seconds; when the second is there, the controller knows the first."""
        deadline = time.monotonic() + 120
        while len(checkpoints(stack, "qoe") - known) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(2)  # for some epochs to be lost
        workers = workers_of(stack, job_id)
        killed.append(workers[-1])
        workers[-1].send_signal(signal.SIGKILL)

    def kill_later(job_id: str) -> None:
        """The log goes on meanwhile."""
        threading.Thread(target=kill_one, args=(job_id,)).start()

    watched = Watched(stack, f"epoch 1/{epochs}", kill_later, QOE_TRAIN)
    config = QoeTrainConfig(small_qoe_dataset(), epochs=epochs, batch_size=16, patience=0)
    result = watched.run(config, seconds=540)
    assert killed
    assert not killed[0].is_running() or killed[0].status() == psutil.STATUS_ZOMBIE
    assert watched.epochs[0] == 1
    assert sorted(set(watched.epochs)) == list(range(1, epochs + 1))
    resumed = [epoch for before, epoch in itertools.pairwise(watched.epochs) if epoch <= before]
    assert len(resumed) <= 1
    assert 1 not in resumed
    assert result.run_id is not None
    history = tracking.connect(stack.settings).get_metric_history(result.run_id, "loss")
    losses = {metric.step: metric.value for metric in history}
    assert set(losses) == set(range(1, epochs + 1))
    # Of a network that began anew the loss would be that of the first epoch again.
    assert all(losses[epoch] < (losses[1] + losses[epoch - 1]) / 2 for epoch in resumed)


def train_until_gone(stack: RunningStack, service: str, field: str, proxy: FaultyProxy) -> None:
    """Take the server behind `proxy` away after an epoch: the job ends by itself and names it."""
    gone: list[float] = []

    def take_down(_: str) -> None:
        gone.append(time.monotonic())
        proxy.refuse()

    watched = Watched(stack, "epoch 1/", take_down)
    with pytest.raises(JobFailedError, match=f"{service} at {proxy.url} is unavailable") as failure:
        watched.run(TrainConfig(small_dataset(), epochs=500), environment={Settings.variable(field): proxy.url})
    assert failure.value.status == "FAILED"
    assert failure.value.error_type == "DependencyUnavailableError"
    assert time.monotonic() - gone[0] < 150


def test_an_object_store_that_goes_down_is_named_and_a_rerun_succeeds(stack: RunningStack) -> None:
    field = "object_store_endpoint"
    with FaultyProxy(stack.settings.need(field)) as proxy:
        train_until_gone(stack, "object store", field, proxy)
        proxy.heal()
        environment = {Settings.variable(field): proxy.url}
        assert Watched(stack, "", lambda _: None).run(TrainConfig(small_dataset(), epochs=1), environment).run_id


def test_an_mlflow_that_goes_down_is_named(stack: RunningStack) -> None:
    with FaultyProxy(stack.settings.need("mlflow_uri")) as proxy:
        train_until_gone(stack, "MLflow", "mlflow_uri", proxy)


def test_more_workers_than_rows_are_refused(stack: RunningStack) -> None:
    with pytest.raises(JobFailedError, match="workers need more") as failure:
        RayJobs(stack.settings).run(TRAIN, config_argument(TrainConfig(small_dataset(), epochs=1, workers=1000)))
    assert failure.value.error_type == InvalidInputError.__name__


def test_cancelling_ends_the_workers(stack: RunningStack) -> None:
    workers: list[psutil.Process] = []

    def cancel(job_id: str) -> None:
        workers.extend(workers_of(stack, job_id))
        threading.Thread(target=RayJobs(stack.settings).cancel, args=(job_id,)).start()

    watched = Watched(stack, "epoch 1/", cancel)
    with pytest.raises(JobFailedError) as failure:
        watched.run(TrainConfig(small_dataset(), epochs=500))
    assert failure.value.status == "STOPPED"
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
