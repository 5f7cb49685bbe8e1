"""Job helpers that need no cluster: what a job leaves in its log, which package travels, how configuration is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.job_entry import config_argument, job_main
from semr.jobs import JobFailedError, RayJobs, error_in_log, package_to_ship
from semr.settings import Settings


@dataclass(frozen=True)
class Config:
    count: int
    name: str = "x"


def test_configuration_travels_as_json() -> None:
    seen: list[Config] = []
    assert job_main(seen.append, Config, config_argument(Config(3, "a b 'c'"))) == 0
    assert seen == [Config(3, "a b 'c'")]


def test_only_a_dataclass_instance_is_a_configuration() -> None:
    with pytest.raises(TypeError, match="dataclass"):
        config_argument({"count": 3})


@pytest.mark.parametrize("text", ["{", '{"count": "many"}', "{}"])
def test_a_bad_configuration_is_an_invalid_input(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert job_main(lambda _: None, Config, ["--config", text]) == 2
    assert error_in_log(capsys.readouterr().err)[0] == "InvalidInputError"


def test_the_named_error_is_found_in_a_noisy_log(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Config) -> None:
        raise DependencyUnavailableError("object store", "http://127.0.0.1:1", "no answer")

    assert job_main(fail, Config, config_argument(Config(1))) == 1
    log = "some noise\n" + capsys.readouterr().err + "a late line of another thread\n"
    kind, message = error_in_log(log)
    assert kind == "DependencyUnavailableError"
    assert message == "object store at http://127.0.0.1:1 is unavailable: no answer"


def test_an_unexpected_error_leaves_its_trace_and_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Config) -> None:
        raise ZeroDivisionError("by zero")

    assert job_main(fail, Config, config_argument(Config(1))) == 1
    log = capsys.readouterr().err
    assert "Traceback" in log
    assert error_in_log(log) == ("ZeroDivisionError", "by zero")


def test_a_log_without_a_mark_has_no_error() -> None:
    assert error_in_log("hello\nsemr-job-error:{broken\n") == ("", "")


def test_a_copied_workflow_travels_and_an_installed_package_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_flows" / "digits"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "train.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert package_to_ship("my_flows.digits.train") == package.parent
    assert package_to_ship("pydantic.main") is None
    assert package_to_ship("json.tool") is None
    assert package_to_ship("semr.jobs") is None


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidInputError, match="no_such_flow"):
        package_to_ship("no_such_flow.train")


def test_a_cluster_that_is_away_is_a_named_error_after_bounded_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semr.jobs.time.sleep", lambda _: None)
    jobs = RayJobs(Settings(ray_dashboard_url="http://127.0.0.1:9"))
    with pytest.raises(DependencyUnavailableError, match=r"Ray Jobs API at http://127\.0\.0\.1:9"):
        jobs.submit("semr.jobs")


def test_the_failure_survives_pickling() -> None:
    import pickle

    error = JobFailedError("train-1", "FAILED", json.dumps("reason"), "ValueError")
    again = pickle.loads(pickle.dumps(error))
    assert (again.job_id, again.status, again.error_type, str(again)) == ("train-1", "FAILED", "ValueError", str(error))
