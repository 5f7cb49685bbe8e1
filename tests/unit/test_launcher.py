"""Local launches are real processes; the Flyte launcher names what is wrong when there is no Flyte."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.evolution.conductor import Conductor
from semr.evolution.flyte_launcher import FlyteLauncher, sentence_of
from semr.evolution.launch import Launch, State, Trigger, parse_outcome
from semr.evolution.launcher import LaunchError, LocalLauncher, Progress, Sight
from semr.evolution.launches import Ledger
from semr.settings import Settings
from semr.stack.processes import SERVICE_VARIABLE

# Plain functions in place of Flyte workflows: they start in no time, and the launcher calls both the same way.
MODULE = """
import json, os, time
from pathlib import Path

def retrain(model_name, launch_id, trigger, seconds=0.0, verdict="promoted"):
    with open(os.environ["RUNS"], "a") as file:
        file.write(launch_id + "\\n")
    time.sleep(seconds)
    return json.dumps({"verdict": verdict, "reason": "so", "challenger_version": 2, "champion_version": "2"})

def nonsense(**_):
    return "fine"

def raises(**_):
    raise ValueError("no\\nluck")

def environment(**_):
    names = ("SEMR_STACK_SERVICE", "SEMR_MLFLOW_URI")
    reason = json.dumps([os.environ.get(name) for name in names] + [os.getsid(0) == os.getpid()])
    return json.dumps({"verdict": "refused", "reason": reason})
"""
WAIT_SECONDS = 30.0

Make = Callable[..., Launch]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def launcher(tmp_path: Path, ledger: Ledger) -> LocalLauncher:
    (tmp_path / "workflows_for_test.py").write_text(MODULE)
    environment = {"PYTHONPATH": str(tmp_path), "RUNS": str(tmp_path / "runs"), "SEMR_MLFLOW_URI": "http://mlflow:1"}
    return LocalLauncher(ledger.path, tmp_path / "logs", environment)


@pytest.fixture
def make(ledger: Ledger) -> Make:
    def create(workflow: str = "retrain", model: str = "a", limit: float = 100.0, **inputs: object) -> Launch:
        plan = {"local": {"module": "workflows_for_test", "workflow": workflow}, "max_run_seconds": limit}
        return ledger.create(model, "retrain", Trigger("human", "test", 0.0), plan=plan, inputs=inputs)

    return create


def conduct(conductor: Conductor, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not until():
        assert time.monotonic() < deadline, conductor.ledger.active()
        conductor.tick()
        time.sleep(0.05)


def conductor_of(ledger: Ledger, launcher: LocalLauncher, **options: float) -> Conductor:
    return Conductor(ledger, launcher, launcher, dict, **options)


def runs(folder: Path) -> list[str]:
    path = folder / "runs"
    return path.read_text().split() if path.exists() else []


def is_running(ledger: Ledger, launch: Launch) -> Callable[[], bool]:
    return lambda: ledger.get(launch.id).state is State.RUNNING


def is_over(ledger: Ledger, launch: Launch) -> Callable[[], bool]:
    return lambda: ledger.get(launch.id).finished is not None


@pytest.mark.parametrize(
    ("workflow", "state", "reason"),
    [
        ("retrain", State.SUCCEEDED, "so"),
        ("nonsense", State.FAILED, "The workflow returned 'fine': expected a JSON object whose verdict is one of"),
        ("raises", State.FAILED, "ValueError: no luck"),
        ("missing", State.FAILED, "has no workflow 'missing': correct launch.local"),
    ],
)
def test_how_a_workflow_ends_is_how_its_launch_ends(
    ledger: Ledger, launcher: LocalLauncher, make: Make, workflow: str, state: State, reason: str
) -> None:
    launch = make(workflow)
    conduct(conductor_of(ledger, launcher), is_over(ledger, launch))
    ended = ledger.get(launch.id)
    assert ended.state is state and reason in ended.detail and "\n" not in ended.detail
    assert ended.outcome is not None and ended.outcome.challenger_version == ("2" if workflow == "retrain" else None)


def test_a_launch_is_not_part_of_the_service_but_has_the_contract(
    ledger: Ledger, launcher: LocalLauncher, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVICE_VARIABLE, "evolution")
    launch = make("environment")
    conduct(conductor_of(ledger, launcher), is_over(ledger, launch))
    assert ledger.get(launch.id).detail == '[null, "http://mlflow:1", true]'


def test_starting_a_launch_many_times_runs_it_once(
    ledger: Ledger, launcher: LocalLauncher, make: Make, tmp_path: Path
) -> None:
    launch = make(seconds=1.0)
    for _ in range(4):
        ledger.begin_attempt(launch.id)
        launcher.start(launch)
    conduct(conductor_of(ledger, launcher), is_over(ledger, launch))
    assert runs(tmp_path) == [launch.id]


def test_a_launch_is_no_descendant_and_a_new_conductor_finds_it_again(
    ledger: Ledger, launcher: LocalLauncher, make: Make, tmp_path: Path
) -> None:
    launch = make(seconds=2.0)
    conduct(conductor_of(ledger, launcher), is_running(ledger, launch))
    pid = ledger.get(launch.id).pid
    assert pid is not None and pid not in [child.pid for child in psutil.Process().children(recursive=True)]
    conduct(conductor_of(Ledger(ledger.path), launcher), is_over(ledger, launch))
    assert ledger.get(launch.id).state is State.SUCCEEDED and runs(tmp_path) == [launch.id]


def test_a_process_that_is_gone_without_a_result_has_failed(
    ledger: Ledger, launcher: LocalLauncher, make: Make
) -> None:
    launch = make(seconds=60.0)
    conductor = conductor_of(ledger, launcher)
    conduct(conductor, is_running(ledger, launch))
    os.kill(ledger.get(launch.id).pid or 0, signal.SIGKILL)
    conduct(conductor, is_over(ledger, launch))
    assert ledger.get(launch.id).state is State.FAILED and "without a result" in ledger.get(launch.id).detail


def test_a_pid_that_belongs_to_somebody_else_now_is_not_mistaken(
    ledger: Ledger, launcher: LocalLauncher, make: Make
) -> None:
    launch = make()
    ledger.begin_attempt(launch.id)
    ledger.claim(launch.id, os.getpid())
    assert launcher.look(ledger.get(launch.id)) == Progress(Sight.LOST)
    launcher.stop(ledger.get(launch.id))


def test_a_launch_that_takes_too_long_is_ended(ledger: Ledger, launcher: LocalLauncher, make: Make) -> None:
    launch = make(limit=0.5, seconds=60.0)
    conductor = conductor_of(ledger, launcher)
    conduct(conductor, is_running(ledger, launch))
    pid = ledger.get(launch.id).pid
    assert pid is not None
    conduct(conductor, is_over(ledger, launch))
    assert "longer than 0.5 s" in ledger.get(launch.id).detail and not psutil.pid_exists(pid)


def test_processes_that_never_claim_are_given_up(
    ledger: Ledger, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semr.evolution.launcher.RUNNER", "no.such.module")
    launcher = LocalLauncher(ledger.path, tmp_path / "logs", {})
    launch = make()
    monkeypatch.setattr("semr.evolution.conductor._FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("semr.evolution.conductor._LONGEST_PAUSE_SECONDS", 0.01)
    conduct(conductor_of(ledger, launcher, claim_seconds=0.05), is_over(ledger, launch))
    ended = ledger.get(launch.id)
    assert (
        ended.state is State.FAILED
        and "started 5 times in vain" in ended.detail
        and "ended with code 1" in ended.detail
    )


def test_a_launch_waits_for_what_it_needs_and_then_runs(
    ledger: Ledger, launcher: LocalLauncher, make: Make, tmp_path: Path
) -> None:
    problems = {"mlflow": "connection refused"}
    conductor = Conductor(ledger, launcher, launcher, lambda: problems)
    launch = make()
    for _ in range(5):
        conductor.tick()
    waiting = ledger.get(launch.id)
    assert waiting.state is State.QUEUED and waiting.detail == "waiting: mlflow: connection refused"
    problems.clear()
    conduct(conductor, is_over(ledger, launch))
    assert ledger.get(launch.id).state is State.SUCCEEDED and runs(tmp_path) == [launch.id]


def test_a_queued_launch_of_a_paused_model_waits(ledger: Ledger, launcher: LocalLauncher, make: Make) -> None:
    launch = make()
    ledger.pause("a", "holidays")
    conductor = conductor_of(ledger, launcher)
    conductor.tick()
    assert ledger.get(launch.id).detail == "waiting: the model is paused (holidays)"
    ledger.resume("a", "back")
    conduct(conductor, is_over(ledger, launch))


def test_a_launcher_that_cannot_write_its_logs_says_so(ledger: Ledger, tmp_path: Path, make: Make) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="No process could be started for launch"):
        LocalLauncher(ledger.path, tmp_path / "file", {}).start(make())


class AwayLauncher:
    """Injects the failure of a backend that does not answer, then runs and ends the launch."""

    claims = False

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.started: list[str] = []

    def _answer(self) -> None:
        if self.failures:
            self.failures -= 1
            raise DependencyUnavailableError("Flyte", "flyte:81", "connection refused")

    def start(self, launch: Launch) -> None:
        self._answer()
        self.started.append(launch.id)

    def look(self, launch: Launch) -> Progress:
        self._answer()
        return Progress(
            Sight.ENDED, parse_outcome('{"verdict": "refused", "reason": "worse", "champion_version": "1"}')
        )

    def stop(self, launch: Launch) -> None:
        raise AssertionError(launch)


def test_a_backend_that_is_away_for_a_while_delays_a_launch(
    ledger: Ledger, launcher: LocalLauncher, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semr.evolution.conductor._LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("semr.evolution.conductor._FIRST_PAUSE_SECONDS", 0.01)
    backend = AwayLauncher(failures=20)
    conductor = Conductor(ledger, backend, launcher, dict)
    launch = make()
    conductor.tick()
    assert conductor.backend_problem == "Flyte at flyte:81 is unavailable: connection refused"
    assert ledger.get(launch.id).detail == f"waiting: {conductor.backend_problem}"
    conduct(conductor, is_over(ledger, launch))
    assert backend.started == [launch.id] and conductor.backend_problem == ""
    assert ledger.get(launch.id).state is State.REFUSED


def test_no_flyte_at_the_endpoint_is_named_within_seconds(unused_port: int, ledger: Ledger) -> None:
    flyte = FlyteLauncher(Settings(flyte_endpoint=f"127.0.0.1:{unused_port}"))
    plan = {"flyte": {"launch_plan": "wf.retrain", "version": None}}
    launch = ledger.create("a", "retrain", Trigger("human", "test", 0.0), plan=plan, inputs={})
    started = time.monotonic()
    for call in (flyte.start, flyte.look):
        with pytest.raises(DependencyUnavailableError, match=f"Flyte at 127.0.0.1:{unused_port} is unavailable: "):
            call(launch)
    assert time.monotonic() - started < 60


def test_a_policy_without_a_plan_for_flyte_is_named(ledger: Ledger) -> None:
    launch = ledger.create("a", "retrain", Trigger("human", "test", 0.0), plan={"local": {}}, inputs={})
    with pytest.raises(InvalidInputError, match=r"no Flyte plan for this model: add launch\.flyte"):
        FlyteLauncher(Settings(flyte_endpoint="127.0.0.1:1")).start(launch)


def test_of_a_stack_trace_a_person_is_told_the_error() -> None:
    """As Flyte 1.16 passes it on; seen in tests/cluster/test_flyte_backend.py."""
    message = (
        "[1/1] currentAttempt done. Last Error: USER::\nTrace:\n\n    Traceback (most recent call last):\n      File ...\n"
        "    semr.jobs.JobFailedError: job recent-1 failed\n\nMessage:\n\n    JobFailedError: job recent-1 failed: Only 0\n"
        "    labelled pictures."
    )
    assert sentence_of(message) == "JobFailedError: job recent-1 failed: Only 0 labelled pictures."
    assert sentence_of("Pod was evicted:\n out of memory") == "Pod was evicted: out of memory"
