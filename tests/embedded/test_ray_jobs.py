"""Ray jobs on a real cluster: logs, named failures, cancelling, time limits, packages that travel."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from stack_tools import RunningStack
from workflow_tools import unique

from semr.job_entry import config_argument
from semr.jobs import JobFailedError, JobResult, RayJobs
from workflow_examples.mnist.prepare import PrepareConfig

JOBS = {
    "greet": """
        import sys, time
        from flows import words
        print(words.HELLO, flush=True)
        time.sleep(4)
        print("ünï" + sys.argv[1])
        print("an unfinished last line", end="")
    """,
    "sleep": """
        import time
        print("asleep", flush=True)
        time.sleep(600)
    """,
    "track": """
        from semr.job_entry import tracked_run
        with tracked_run("tests", "tracked"):
            pass
    """,
    "crash": """
        import os
        print("about to crash", flush=True)
        os._exit(7)
    """,
    "long": """
        for number in range(20_000):
            print(f"line {number}")
    """,
    "words": "HELLO = 'hello from a package of my own'",
}


@pytest.fixture(scope="module")
def package(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package of jobs that is nowhere but in a folder of this test."""
    folder = tmp_path_factory.mktemp("jobs")
    name = unique("flows").replace("-", "_")
    (folder / name).mkdir()
    (folder / name / "__init__.py").touch()
    for job, text in JOBS.items():
        source = "\n".join(line.removeprefix(" " * 8) for line in text.strip("\n").splitlines())
        (folder / name / f"{job}.py").write_text(source.replace("from flows", f"from {name}") + "\n")
    sys.path.insert(0, str(folder))
    yield name
    sys.path.remove(str(folder))


@pytest.fixture
def jobs(stack: RunningStack) -> RayJobs:
    return RayJobs(stack.settings)


def test_lines_arrive_while_the_job_runs_and_nothing_else_does(jobs: RayJobs, package: str) -> None:
    arrived: list[tuple[str, float]] = []
    result = jobs.run(f"{package}.greet", ["x y"], on_line=lambda line: arrived.append((line, time.monotonic())))
    assert [line for line, _ in arrived] == ["hello from a package of my own", "ünïx y", "an unfinished last line"]
    assert arrived[1][1] - arrived[0][1] > 1
    assert isinstance(result, JobResult)
    assert result.run_id is None
    assert re.fullmatch(r"greet-[0-9a-f]{8}", result.job_id)


def test_no_line_of_a_long_log_is_lost_or_doubled(jobs: RayJobs, package: str) -> None:
    lines: list[str] = []
    jobs.run(f"{package}.long", on_line=lines.append)
    assert lines == [f"line {number}" for number in range(20_000)]


def test_the_run_of_a_job_is_found(jobs: RayJobs, package: str) -> None:
    from semr import tracking

    result = jobs.run(f"{package}.track")
    assert result.run_id is not None
    run = tracking.connect(jobs.settings).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.JOB_ID_TAG] == result.job_id


def test_a_job_that_fails_on_purpose_has_its_own_error(jobs: RayJobs) -> None:
    with pytest.raises(JobFailedError, match="0000") as failure:
        jobs.run("workflow_examples.mnist.prepare", config_argument(PrepareConfig("0" * 16)))
    assert failure.value.status == "FAILED"
    assert failure.value.error_type.endswith("Error")
    assert failure.value.error_type != "JobFailedError"


def test_a_job_that_crashes_says_its_exit_code(jobs: RayJobs, package: str) -> None:
    with pytest.raises(JobFailedError, match="7") as failure:
        jobs.run(f"{package}.crash")
    assert failure.value.error_type == ""


def test_a_job_can_be_cancelled(jobs: RayJobs, package: str) -> None:
    job_id = jobs.submit(f"{package}.sleep")
    timer = threading.Timer(3, jobs.cancel, args=(job_id,))
    timer.start()
    started = time.monotonic()
    with pytest.raises(JobFailedError) as failure:
        jobs.wait(job_id)
    assert failure.value.status == "STOPPED"
    assert time.monotonic() - started < 30


def test_a_job_that_takes_too_long_is_stopped(jobs: RayJobs, package: str) -> None:
    with pytest.raises(JobFailedError, match="longer than 3 s") as failure:
        jobs.run(f"{package}.sleep", timeout_seconds=3)
    assert failure.value.status == "STOPPED"
    assert _wait_for_end(jobs, failure.value.job_id) == "STOPPED"


def test_ctrl_c_while_waiting_stops_the_job(jobs: RayJobs, package: str) -> None:
    job_id = jobs.submit(f"{package}.sleep")

    def interrupt(line: str) -> None:
        import _thread

        assert line == "asleep"
        _thread.interrupt_main()

    with pytest.raises((KeyboardInterrupt, SystemExit)):  # flytekit, once imported, turns the one into the other
        jobs.wait(job_id, on_line=interrupt)
    assert _wait_for_end(jobs, job_id) == "STOPPED"


def test_an_environment_variable_reaches_the_job(jobs: RayJobs) -> None:
    with pytest.raises(JobFailedError, match="SEMR_MLFLOW_URI cannot be used"):
        jobs.run(
            "workflow_examples.mnist.prepare",
            config_argument(PrepareConfig("0" * 16)),
            environment={"SEMR_MLFLOW_URI": "nonsense"},
        )


def _wait_for_end(jobs: RayJobs, job_id: str) -> str:
    """The status with which a job that was told to stop ends, asked for without the code under test."""
    headers = {"Authorization": f"Bearer {jobs.settings.need('ray_auth_token')}"}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        answer = httpx.get(f"{jobs.settings.need('ray_dashboard_url')}/api/jobs/{job_id}", headers=headers)
        status = str(answer.raise_for_status().json()["status"])
        if status not in ("PENDING", "RUNNING"):
            return status
        time.sleep(0.2)
    raise AssertionError(f"{job_id} runs on")
