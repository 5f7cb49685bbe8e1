"""The policy file: what it says, and what is said about a file that says something else."""

from __future__ import annotations

import copy
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from semr.evolution.policy import PolicyError, QuietHours, load_policy

EXAMPLE = Path(__file__).parents[2] / "workflow_examples/mnist/policy.yaml"
SMALL: dict[str, Any] = {"models": {"m": {"alerts": ["A"], "launch": {"local": {"module": "a.b", "workflow": "w"}}}}}


def write(folder: Path, content: object) -> Path:
    path = folder / "policy.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(path: str, value: object) -> dict[str, Any]:
    content = copy.deepcopy(SMALL)
    *parents, last = path.split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return content


def test_the_example_is_a_policy() -> None:
    policy = load_policy(EXAMPLE).models["mnist"]
    inputs = policy.workflow_inputs()
    assert inputs["min_gain"] == 0.0 and inputs["verification_seconds"] == 300
    assert policy.launch.local is not None and policy.launch.flyte is not None


def test_thresholds_that_are_left_out_are_left_to_the_workflow(tmp_path: Path) -> None:
    assert load_policy(write(tmp_path, SMALL)).models["m"].workflow_inputs() == {}
    policy = load_policy(write(tmp_path, changed("models.m.launch.inputs", {"epochs": 3}))).models["m"]
    assert policy.workflow_inputs() == {"epochs": 3}
    policy = load_policy(write(tmp_path, changed("models.m.gate", {"confidence": 0.9}))).models["m"]
    assert policy.workflow_inputs() == {"confidence": 0.9}
    policy = load_policy(write(tmp_path, changed("models.m.deployment_target", "helm"))).models["m"]
    assert policy.workflow_inputs() == {"deployment_target": "helm"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "models.m.cooldown",
            5,
            r"models\.m: there is no key 'cooldown' here; allowed are alerts, launch, cooldown_seconds",
        ),
        ("models.m.gate", {"min_gian": 1}, r"models\.m\.gate: there is no key 'min_gian' here; allowed are min_gain"),
        ("modles", {}, r"there is no key 'modles' here; allowed are models"),
        ("models.m.cooldown_seconds", -1, r"models\.m\.cooldown_seconds: .*greater than or equal to 0"),
        ("models.m.max_launches_per_day", 0, r"models\.m\.max_launches_per_day: "),
        ("models.m.alerts", [], r"models\.m\.alerts: "),
        ("models.m.launch", {"inputs": {}}, r"models\.m\.launch: it names nothing to launch: add local .* or flyte"),
        (
            "models.m.launch.inputs",
            {"launch_id": "x"},
            r"models\.m\.launch: the input 'launch_id' is given by the service",
        ),
        ("models.m.launch.local.module", "a b", r"models\.m\.launch\.local\.module: "),
        ("models.m.quiet_hours", [{"start": "25:00", "end": "1:00"}], r"models\.m\.quiet_hours\.0\.start: "),
        (
            "models.m.quiet_hours",
            [{"start": "22:00", "end": "23:00", "timezone": "Mars/X"}],
            r"timezone: 'Mars/X' is not",
        ),
        ("models.a/b", SMALL["models"]["m"], r"models\.a/b: "),
        ("models", {}, r"models: it names no model"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, path: str, value: object, message: str) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        load_policy(write(tmp_path, changed(path, value)))
    assert "policy.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        load_policy(tmp_path / "nothing")
    for text in ("models: [", "\x00", "models: {a: b"):
        with pytest.raises(PolicyError, match="is not YAML"):
            load_policy(write(tmp_path, text))
    for text in ("", "a list", "- 1"):
        with pytest.raises(PolicyError, match="cannot be used"):
            load_policy(write(tmp_path, text))


def at(text: str, timezone: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(timezone)).timestamp()


def test_quiet_hours_over_midnight_belong_to_the_day_on_which_they_start() -> None:
    hours = QuietHours.model_validate({"start": "22:00", "end": "06:00", "timezone": "Europe/Oslo", "days": ["friday"]})
    quiet = ["2026-11-20T22:00", "2026-11-20T23:59", "2026-11-21T00:00", "2026-11-21T05:59"]
    loud = ["2026-11-20T21:59", "2026-11-21T06:00", "2026-11-20T03:00", "2026-11-21T22:00", "2026-11-22T01:00"]
    assert [hours.contains(at(text, "Europe/Oslo")) for text in quiet] == [True] * 4
    assert [hours.contains(at(text, "Europe/Oslo")) for text in loud] == [False] * 5


def test_quiet_hours_may_be_written_without_quotes(tmp_path: Path) -> None:
    text = yaml.safe_dump(SMALL).rstrip() + "\n    quiet_hours:\n    - {start: 12:30, end: 23:00}\n"
    policy = load_policy(write(tmp_path, text)).models["m"]
    assert policy.is_quiet(at("2026-11-20T12:30", "UTC")) and policy.is_quiet(at("2026-11-20T22:59", "UTC"))
    assert not policy.is_quiet(at("2026-11-20T12:29", "UTC")) and not policy.is_quiet(at("2026-11-20T23:00", "UTC"))


def test_the_example_gives_the_workflow_only_inputs_that_it_has() -> None:
    from workflow_examples.mnist.wf_evolution import mnist_retrain

    policy = load_policy(EXAMPLE).models["mnist"]
    assert policy.launch.local is not None
    assert f"{policy.launch.local.module}.{policy.launch.local.workflow}" == mnist_retrain.name
    types = mnist_retrain.python_interface.inputs
    for name, value in policy.workflow_inputs().items():
        assert type(value) is types[name], name
