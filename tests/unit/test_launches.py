"""What is launched for alerts and people: storms, repetitions, limits, clocks; by the ledger alone, without processes."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semr.evolution.alerts import Alert
from semr.evolution.intake import Decision, Intake, NotNowError, Result, UnknownModelError
from semr.evolution.launch import Outcome, State, failed
from semr.evolution.launches import Ledger, LedgerError
from semr.evolution.policy import Policy

HOUR = 3600.0
START = 1_800_000_000.0  # 2027-01-15 08:00 UTC


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def policy(**changes: Any) -> Policy:
    model = {
        "alerts": ["Drift", "Quality"],
        "launch": {"local": {"module": "m", "workflow": "w"}, "inputs": {"epochs": 3}},
        "cooldown_seconds": 600,
        "max_launches_per_day": 4,
        **changes,
    }
    return Policy.model_validate({"models": {"a": model, "b": model}})


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Intake]


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Make:
    def build(**changes: Any) -> Intake:
        return Intake(Ledger(tmp_path / "ledger.sqlite", clock), policy(**changes))

    return build


def alert(
    name: str = "Drift",
    model: str = "a",
    version: str | None = "1",
    starts: str = "2026-01-01T00:00:00Z",
    status: str = "firing",
    key: str = "",
) -> Alert:
    labels = {"alertname": name, "model": model, "key": key, **({"version": version} if version else {})}
    fingerprint = "-".join(labels.values())
    return Alert.model_validate({"status": status, "labels": labels, "startsAt": starts, "fingerprint": fingerprint})


def end(intake: Intake, launch_id: str, verdict: State = State.SUCCEEDED, new: str = "2", champion: str = "2") -> None:
    assert intake.ledger.begin_attempt(launch_id)
    assert intake.ledger.claim(launch_id, 1) is not None
    assert intake.ledger.finish(launch_id, Outcome(verdict, "so it is", new, champion))


def kinds(intake: Intake, model: str = "a") -> list[str]:
    return [record.kind for _, record in intake.ledger.pending_records(model)]


def launches(intake: Intake) -> Counter[str]:
    return Counter(launch.model for model in ("a", "b") for launch in intake.ledger.launches(model, 1000))


def test_a_launch_carries_all_that_the_workflow_needs(make: Make) -> None:
    intake = make()
    decision = intake.alert(alert())
    assert decision.result is Result.LAUNCHED
    launch = intake.ledger.get(decision.launch_id)
    assert launch.state is State.QUEUED and launch.version == "1" and len(launch.id) == 20
    assert launch.inputs == {
        "epochs": 3,
        "model_name": "a",
        "launch_id": launch.id,
        "trigger": launch.trigger.to_json(),
    }
    assert launch.trigger.labels["alertname"] == "Drift" and launch.trigger.time == START


def test_a_storm_over_two_models_launches_each_once(make: Make, clock: Clock) -> None:
    intake = make()
    results: Counter[Result] = Counter()
    for number in range(500):
        clock.now += 0.12
        for model in ("a", "b"):
            results[intake.alert(alert(model=model, key=str(number), starts=str(number))).result] += 1
    assert launches(intake) == {"a": 1, "b": 1}
    assert results == {Result.LAUNCHED: 2, Result.JOINED: 998}
    assert kinds(intake) == ["triggered"]


def test_a_storm_from_many_threads_launches_once(make: Make) -> None:
    intake = make()
    decisions: list[Decision] = []

    def send(start: int) -> None:
        for number in range(start, start + 25):
            decisions.append(intake.alert(alert(key=str(number))))  # noqa: PERF401

    threads = [threading.Thread(target=send, args=(25 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(decision.result for decision in decisions) == {Result.LAUNCHED: 1, Result.JOINED: 199}


@pytest.mark.parametrize("verdict", [State.SUCCEEDED, State.REFUSED, State.ROLLED_BACK])
def test_sending_an_alert_again_for_an_hour_launches_once(make: Make, clock: Clock, verdict: State) -> None:
    intake = make(cooldown_seconds=60, max_launches_per_day=100)
    first = intake.alert(alert())
    clock.now += 30
    champion = "2" if verdict is State.SUCCEEDED else "1"
    end(intake, first.launch_id, verdict, champion=champion)
    for _ in range(360):
        clock.now += 10
        assert intake.alert(alert()).result is Result.REPEATED
    assert launches(intake) == {"a": 1}
    assert "skipped" not in kinds(intake)


def test_a_new_episode_launches_again_after_the_cooldown(make: Make, clock: Clock) -> None:
    intake = make()
    end(intake, intake.alert(alert()).launch_id, State.REFUSED, champion="1")
    clock.now += 599
    decision = intake.alert(alert(starts="later"))
    assert decision == Decision(Result.SKIPPED, "the cooldown after the last launch is not over")
    clock.now += 1
    assert intake.alert(alert(starts="later")).result is Result.LAUNCHED


def test_an_alert_that_still_fires_is_answered_again_when_the_policy_says_so(make: Make, clock: Clock) -> None:
    intake = make(relaunch_after_seconds=7200)
    end(intake, intake.alert(alert()).launch_id, State.REFUSED, champion="1")
    clock.now += 7199
    assert intake.alert(alert()).result is Result.REPEATED
    clock.now += 1
    assert intake.alert(alert()).result is Result.LAUNCHED


def test_a_failed_launch_answers_nothing(make: Make, clock: Clock) -> None:
    intake = make(max_launches_per_day=3)
    for _ in range(3):
        decision = intake.alert(alert())
        assert decision.result is Result.LAUNCHED
        assert intake.ledger.finish(decision.launch_id, failed("no servers"))
        assert intake.alert(alert()).result is Result.SKIPPED
        clock.now += 600
    assert intake.alert(alert()).reason == "the daily budget of launches is used up"
    assert kinds(intake).count("failed") == 3


def test_resolved_alerts_launch_nothing_and_end_their_episode(make: Make) -> None:
    intake = make()
    assert intake.alert(alert(status="resolved")).result is Result.RESOLVED
    assert intake.alert(alert()).result is Result.REPEATED, "delivered out of order"
    assert launches(intake) == {}
    assert intake.alert(alert(starts="again")).result is Result.LAUNCHED


@pytest.mark.parametrize("other", [alert(name="Unknown"), alert(model="c"), alert(model="")])
def test_alerts_that_the_policy_does_not_name_are_ignored(make: Make, other: Alert) -> None:
    intake = make()
    assert intake.alert(other).result is Result.IGNORED
    assert launches(intake) == {} and intake.ledger.pending_count() == 0


def test_late_alerts_about_a_replaced_version_launch_nothing(make: Make, clock: Clock) -> None:
    intake = make(cooldown_seconds=0)
    end(intake, intake.alert(alert()).launch_id)
    late = intake.alert(alert(name="Quality", version="1"))
    assert late == Decision(Result.SKIPPED, "the version has been replaced")
    assert intake.alert(alert(name="Quality", version="2")).result is Result.LAUNCHED


def test_after_a_rollback_alerts_about_the_restored_version_count_again(make: Make) -> None:
    intake = make(cooldown_seconds=0)
    end(intake, intake.alert(alert()).launch_id)
    rollback = intake.roll_back("a", None, "it smells")
    end(intake, rollback.id, State.ROLLED_BACK, new="2", champion="1")
    assert intake.alert(alert(name="Quality", version="2")).reason == "the version has been replaced"
    assert intake.alert(alert(name="Quality", version="1")).result is Result.LAUNCHED


def test_an_alert_about_another_version_is_not_answered_by_the_active_launch(make: Make) -> None:
    intake = make(cooldown_seconds=0)
    first = intake.alert(alert(version="1"))
    assert intake.alert(alert(name="Quality", version="2")).reason == "a launch for another version is active"
    end(intake, first.launch_id)
    assert intake.alert(alert(name="Quality", version="2")).result is Result.LAUNCHED


def test_a_paused_model_launches_nothing_but_records_that_it_did_not(make: Make) -> None:
    intake = make()
    assert intake.pause("a", "holidays") and not intake.pause("a", "again")
    for number in range(50):
        assert intake.alert(alert(key=str(number))).reason == "the model is paused"
    assert intake.alert(alert(model="b")).result is Result.LAUNCHED
    with pytest.raises(NotNowError, match=r"a is paused \(holidays\): resume it first"):
        intake.retrain("a", "human", "")
    assert kinds(intake) == ["paused", "skipped"]
    assert intake.resume("a", "back") and not intake.resume("a", "again")
    assert intake.alert(alert()).result is Result.LAUNCHED
    assert kinds(intake) == ["paused", "skipped", "resumed", "triggered"]


def test_the_daily_budget_is_one_of_any_24_hours(make: Make, clock: Clock) -> None:
    intake = make(cooldown_seconds=0, max_launches_per_day=2)
    for number in range(2):
        end(intake, intake.alert(alert(starts=str(number))).launch_id, State.REFUSED, champion="1")
        clock.now += 6 * HOUR
    assert intake.alert(alert(starts="x")).reason == "the daily budget of launches is used up"
    clock.now += 12 * HOUR
    assert intake.alert(alert(starts="x")).result is Result.LAUNCHED


def test_quiet_hours_hold_alerts_and_cron_but_not_people(make: Make, clock: Clock) -> None:
    intake = make(quiet_hours=[{"start": "08:00", "end": "09:00"}])
    assert intake.alert(alert()).reason == "these are quiet hours"
    with pytest.raises(NotNowError, match="these are quiet hours"):
        intake.retrain("a", "cron", "nightly")
    assert intake.retrain("b", "human", "I want it").trigger.kind == "human"
    clock.now += HOUR
    assert intake.alert(alert()).result is Result.LAUNCHED, "it still fires, and is sent again"


def test_people_are_not_held_by_cooldown_and_budget_but_get_no_second_launch(make: Make) -> None:
    intake = make(max_launches_per_day=1)
    end(intake, intake.alert(alert()).launch_id)
    launch = intake.retrain("a", "human", "now")
    with pytest.raises(NotNowError, match=f"launch {launch.id} active"):
        intake.retrain("a", "human", "now")
    with pytest.raises(NotNowError, match="active"):
        intake.roll_back("a", None, "")
    with pytest.raises(UnknownModelError, match="no model 'c', only a, b"):
        intake.retrain("c", "human", "")


@pytest.mark.parametrize("jump", [-60.0, -HOUR, -400 * 24 * HOUR])
def test_a_clock_that_is_set_back_neither_doubles_nor_blocks_for_longer_than_the_limits(
    make: Make, clock: Clock, jump: float
) -> None:
    intake = make(max_launches_per_day=1)
    end(intake, intake.alert(alert()).launch_id, State.REFUSED, champion="1")
    clock.now += jump
    assert intake.alert(alert()).result is Result.REPEATED
    assert intake.alert(alert(starts="2")).result is Result.SKIPPED
    clock.now += 601
    assert intake.alert(alert(starts="2")).reason == "the daily budget of launches is used up"
    clock.now += 24 * HOUR
    assert intake.alert(alert(starts="2")).result is Result.LAUNCHED


def test_a_launch_is_claimed_once_and_ends_once(make: Make, tmp_path: Path) -> None:
    intake = make()
    launch_id = intake.alert(alert()).launch_id
    other_process = Ledger(tmp_path / "ledger.sqlite")
    assert other_process.claim(launch_id, 7) is not None and intake.ledger.claim(launch_id, 8) is None
    assert not intake.ledger.begin_attempt(launch_id)
    assert intake.ledger.finish(launch_id, Outcome(State.REFUSED, "worse", "2", "1"))
    assert not other_process.finish(launch_id, failed("late"))
    assert intake.ledger.get(launch_id).state is State.REFUSED and intake.ledger.get(launch_id).pid == 7
    assert kinds(intake) == ["triggered", "launched"], "the workflow records its verdict itself"


def test_what_was_decided_survives(make: Make, tmp_path: Path) -> None:
    launch_id = make().alert(alert()).launch_id
    again = make()
    assert [launch.id for launch in again.ledger.active()] == [launch_id]
    assert again.alert(alert()).result is Result.REPEATED


def test_half_a_decision_is_none(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    intake = make()

    def break_off(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Ledger, "answer_episode", break_off)
        intake.alert(alert())
    assert launches(intake) == {} and intake.ledger.pending_count() == 0
    assert intake.alert(alert()).result is Result.LAUNCHED


def test_a_ledger_that_is_damaged_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite cannot be opened"):
        Ledger(path)
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "file/ledger.sqlite")


def test_a_second_active_launch_is_refused_by_the_file_itself(make: Make, tmp_path: Path) -> None:
    launch_id = make().alert(alert()).launch_id
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection, pytest.raises(sqlite3.IntegrityError):
        columns = "model, action, state, plan, inputs, trigger, created, counted_from, cooled_from"
        connection.execute(
            f"INSERT INTO launches (id, {columns}) SELECT 'x', {columns} FROM launches WHERE id = ?", [launch_id]
        )
