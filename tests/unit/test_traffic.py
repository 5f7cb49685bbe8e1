"""Live traffic against a real model server: sent on time whatever becomes of it, counted, and told what came true."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console
from serving import ServerProcess, save_steps, server

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.inference.client import InferenceClient
from semr.inference.protocol import Array
from semr.traffic import Drift, OpenLoop, Request, Tally, exit_code_of, show
from workflow_examples.mnist.traffic import Pool as Pictures
from workflow_examples.mnist.traffic import Traffic as PictureTraffic
from workflow_examples.qoe import traffic as qoe
from workflow_examples.qoe.features import WindowPlan
from workflow_examples.qoe.synthetic import Synthetic

SLEEP, FAIL = 1000.0, 2000.0


@dataclass
class Doubles(OpenLoop):
    """Numbers, for the model of `models/steps.py`: it answers twice the number, right to half a unit.

    Attributes:
        numbers: of one request after the other; the last again and again.
        off: what is fed back lies beside the truth by so much.
        prediction_id: that feedback is given with, in place of the right one.
        drawn, answered, told: when.
    """

    numbers: tuple[float, ...] = (1.0,)
    off: float = 0.0
    prediction_id: str = ""
    drawn: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)

    def draw(self) -> Request:
        number = self.numbers[min(len(self.drawn), len(self.numbers) - 1)]
        self.drawn.append(time.monotonic())
        inputs = np.full((self.rows, 2), number, np.float32)
        return Request(inputs, 2 * inputs, 2 * inputs + self.off)

    def right(self, output: Array, truth: Array) -> int | None:
        self.answered.append(time.monotonic())
        assert np.array_equal(output, truth)
        return None

    def tell(self, client: InferenceClient, prediction_id: str, told: Array) -> int:
        self.told.append(time.monotonic())
        return client.feedback_values(self.prediction_id or prediction_id, told.tolist())


@dataclass
class Judged(Doubles):
    """Counts itself, whatever is fed back."""

    def right(self, output: Array, truth: Array) -> int | None:
        return len(truth) - 1


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    model = save_steps(tmp_path_factory.mktemp("model"), tolerance="0.5,0.5")
    with server(tmp_path_factory.mktemp("server"), "--model", str(model)) as started:
        started.wait_until_ready()
        yield started


def finished(traffic: OpenLoop) -> Tally:
    with traffic:
        return traffic.finish()


def fed_back(running: ServerProcess) -> float:
    """Labels that the server has counted as right so far."""
    lines = httpx.get(f"{running.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith('semr_feedback_total{correct="true"'))


@pytest.mark.parametrize(("off", "right"), [(0.4, 30), (0.6, 0)])
def test_so_many_requests_are_answered_and_the_server_says_what_is_right(
    running: ServerProcess, off: float, right: int
) -> None:
    before = fed_back(running)
    tally = finished(Doubles(running.url, "steps", 100.0, rows=3, requests=10, feedback_delay=0.0, off=off))
    assert tally == Tally(sent=10, failed=0, rows=30, right=right, versions={"1": 10})
    assert tally.accuracy == right / 30
    assert fed_back(running) - before == right


def test_an_example_may_count_by_itself_and_labels_may_lie(running: ServerProcess) -> None:
    tally = finished(Judged(running.url, "steps", 100.0, rows=3, requests=4, feedback_delay=0.0, off=9.0))
    assert (tally.rows, tally.right) == (12, 8)


def test_feedback_comes_after_its_delay(running: ServerProcess) -> None:
    traffic = Doubles(running.url, "steps", 50.0, requests=5, feedback_delay=0.7)
    assert finished(traffic).right == 5
    assert len(traffic.told) == len(traffic.answered) == 5
    assert min(traffic.told) - min(traffic.answered) >= 0.69
    assert max(traffic.told) - max(traffic.answered) >= 0.69


@pytest.mark.parametrize("silence", [{"feedback_delay": None}, {"feedback_share": 0.0}])
def test_nothing_need_be_fed_back(running: ServerProcess, silence: dict[str, Any]) -> None:
    traffic = Doubles(running.url, "steps", 100.0, requests=5, **silence)
    tally = finished(traffic)
    assert traffic.told == []
    assert (tally.sent, tally.rows) == (5, 0)
    assert math.isnan(tally.accuracy)


def test_a_share_is_fed_back(running: ServerProcess) -> None:
    traffic = Doubles(running.url, "steps", 200.0, requests=60, feedback_delay=0.0, feedback_share=0.5)
    assert 15 < finished(traffic).rows == len(traffic.told) < 45


def test_a_slow_answer_holds_no_request_back(running: ServerProcess) -> None:
    """Three seconds of sleep; all others are due long before."""
    traffic = Doubles(running.url, "steps", 50.0, requests=10, numbers=(SLEEP, 1.0))
    assert finished(traffic).sent == 10
    assert max(traffic.drawn) - min(traffic.drawn) < 2.5
    assert max(traffic.answered) - min(traffic.drawn) >= 3.0


def test_failed_requests_are_counted_and_named(running: ServerProcess) -> None:
    console = Console(record=True, width=200)
    traffic = Doubles(running.url, "steps", 50.0, requests=5, numbers=(FAIL, 1.0, FAIL, FAIL, 1.0), feedback_delay=0.0)
    tally = show(traffic, 0.2, console=console)
    assert (tally.sent, tally.failed, tally.rows, tally.versions) == (5, 3, 2, {"1": 2})
    text = console.export_text()
    assert "in all   5 requests, 3 failed, accuracy 1.000 (version 1: 2)" in text
    assert "3 x the model server answered 500" in text
    assert len(traffic.errors) == 3
    assert exit_code_of(lambda: tally) == 1


def test_feedback_that_is_refused_is_named_and_no_failed_request(running: ServerProcess) -> None:
    traffic = Doubles(running.url, "steps", 50.0, requests=3, feedback_delay=0.0, prediction_id="nonsense")
    assert finished(traffic) == Tally(sent=3, failed=0, rows=0, right=0, versions={"1": 3})
    assert ["not a prediction id" in error for error in traffic.errors] == [True] * 3


def test_a_tally_is_of_a_stretch_of_time(running: ServerProcess) -> None:
    with Doubles(running.url, "steps", 50.0, requests=4, feedback_delay=0.0) as traffic:
        assert traffic.newest_version() is None or traffic.newest_version() == "1"
        traffic.finish()
        middle = sorted(traffic.answered)[2]
        assert traffic.tally(until=middle).sent + traffic.tally(since=middle).sent == 4
        assert traffic.tally(since=time.monotonic()).sent == 0
        assert traffic.newest_version() == "1"


def test_drift_begins_when_it_is_to(running: ServerProcess) -> None:
    traffic = Doubles(running.url, "steps", 20.0, feedback_delay=0.0)
    begun: list[float] = []

    def begin() -> str:
        traffic.off = 9.0
        begun.append(time.monotonic())
        return "lies"

    console = Console(record=True, width=200)
    tally = show(traffic, 1.5, Drift(0.5, begin), console)
    assert len(begun) == 1
    assert begun[0] - traffic.drawn[0] >= 0.4
    assert 0 < tally.right < tally.rows
    assert "drift begins: lies" in console.export_text()


def test_drift_from_the_first_request_on(running: ServerProcess) -> None:
    traffic = Doubles(running.url, "steps", 50.0, feedback_delay=0.0)

    def begin() -> str:
        traffic.off = 9.0
        return "lies"

    tally = show(traffic, 0.3, Drift(0.0, begin))
    assert tally.rows > 0
    assert tally.right == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rate": 0}, "rate"),
        ({"rate": 1001}, "rate"),
        ({"rate": math.nan}, "rate"),
        ({"rows": 0}, "at least 1 row"),
        ({"requests": 0}, "at least 1 request"),
        ({"feedback_delay": -1}, "after the answer"),
        ({"feedback_share": 1.5}, "share"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        Doubles(**{"url": "http://127.0.0.1:9", "model": "steps", "rate": 1.0, **wrong})


def test_an_error_is_a_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: show(Doubles("http://127.0.0.1:9", "steps", 1.0), 0.0)) == 2
    assert "traffic: Traffic takes more than 0 seconds." in capsys.readouterr().err


def test_without_a_server_nothing_is_sent(unused_port: int) -> None:
    traffic = Doubles(f"http://127.0.0.1:{unused_port}", "steps", 1.0)
    with pytest.raises(DependencyUnavailableError, match=str(unused_port)):
        show(traffic, 1.0)
    assert traffic.drawn == []


def interrupted(url: str) -> int:
    """What the process of the next test runs."""
    return exit_code_of(lambda: show(Doubles(url, "steps", 20.0), 120.0, Drift(0.3, lambda: "none")))


def test_an_interrupt_ends_it(running: ServerProcess) -> None:
    code = "import sys, test_traffic; sys.exit(test_traffic.interrupted(sys.argv[1]))"
    command = [sys.executable, "-u", "-c", code, running.url]
    process = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "drift begins" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()


def test_pictures_keep_their_labels_and_some_are_told_wrong() -> None:
    pool = Pictures(np.stack([np.full((28, 28), label / 10, np.float32) for label in range(10)]), np.arange(10))
    traffic = PictureTraffic("http://127.0.0.1:9", "mnist", 1.0, pool, rows=200)
    request = traffic.draw()
    assert request.inputs.shape == (200, 28, 28, 1)
    # Its middle says which picture it is: jitter moves it by little.
    assert np.array_equal(np.rint(request.inputs[:, 14, 14, 0] * 10), request.truth)
    assert np.array_equal(request.told, request.truth)
    traffic.mislabel = 0.5
    request = traffic.draw()
    assert 50 < np.count_nonzero(request.told != request.truth) < 150
    assert traffic.right(np.eye(10)[request.truth], request.truth) == 200
    assert traffic.right(np.eye(10)[request.told], request.truth) < 150


def test_windows_come_in_turn_with_what_came_after_them() -> None:
    pool = qoe.Pool.of(Synthetic(cells=1, reports=40, loss_probability=0, outage_probability=0), WindowPlan())
    assert len(pool.windows) == 29
    traffic = qoe.Traffic("http://127.0.0.1:9", "qoe", 1.0, pool, start=20, rows=12)
    first, second = traffic.draw(), traffic.draw()
    rows = [*range(20, 29), 0, 1, 2]
    assert np.array_equal(first.inputs, pool.windows[rows])
    assert np.array_equal(first.truth, pool.targets[rows])
    assert np.array_equal(second.told, pool.targets[3:15])


def test_windows_of_another_regime_lie_in_it() -> None:
    usual = qoe.Pool.of(Synthetic(cells=2, reports=600), WindowPlan())
    changed = qoe.Pool.of(Synthetic(cells=2, reports=600, regime_at=300), WindowPlan())
    assert 0.4 < len(changed.windows) / len(usual.windows) < 0.51
    assert changed.windows.mean() > 1.5 * usual.windows.mean()
