"""What is launched for an alert, a cron run or a person, and what is not: the rules, and nothing but them.

An alert is known by its fingerprint and its start: an episode. An episode launches once, however often it is sent again. It
is answered by the launch that it caused, and by one that was active when it arrived and replaces the same model version.
A launch that failed answers nothing; one that came to a verdict does, unless the policy says after which time to try again.
An episode that was passed over (pause, cooldown, quiet hours, budget) is considered anew when Alertmanager sends it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from semr.errors import InvalidInputError, SemrError
from semr.evolution.alerts import Alert
from semr.evolution.launch import FINAL, Launch, State, Trigger, TriggerKind
from semr.evolution.launches import Ledger
from semr.evolution.policy import ModelPolicy, Policy


class UnknownModelError(InvalidInputError):
    """The policy has no such model."""


class NotNowError(SemrError):
    """The policy or the state of the model does not allow the launch that a person or a cron run asked for."""


class Result(str, Enum):
    """What became of an alert."""

    LAUNCHED = "launched"
    JOINED = "joined"
    REPEATED = "repeated"
    SKIPPED = "skipped"
    RESOLVED = "resolved"
    IGNORED = "ignored"


@dataclass(frozen=True)
class Decision:
    """What became of an alert, why, and the launch that answers it ("" for none)."""

    result: Result
    reason: str = ""
    launch_id: str = ""


@dataclass(frozen=True)
class Intake:
    """Decides over one ledger by one policy; every method is one transaction, and may raise `LedgerError`."""

    ledger: Ledger
    policy: Policy

    def alert(self, alert: Alert) -> Decision:
        """Decide about one alert."""
        policy = self.policy.models.get(alert.model)
        if policy is None:
            return Decision(Result.IGNORED, f"the policy has no model {alert.model!r}")
        if alert.name not in policy.alerts:
            return Decision(Result.IGNORED, f"the policy of {alert.model!r} does not name the alert {alert.name!r}")
        with self.ledger.transaction():
            if alert.status == "resolved":
                self.ledger.resolve_episode(*_episode(alert))
                return Decision(Result.RESOLVED)
            return self._answer_before(alert, policy) or self._answer_now(alert, policy)

    def retrain(self, model: str, kind: TriggerKind, reason: str) -> Launch:
        """Launch a retraining that a person or a cron run asks for; a person is not held by cooldown, budget or quiet hours.

        Raises:
            UnknownModelError: the policy has no such model.
            NotNowError: it is paused or has an active launch; for a cron run also any limit of the policy.
        """
        policy = self._policy(model)
        with self.ledger.transaction():
            self._refuse_if_busy(model)
            reason_against = None if kind == "human" else self._obstacle(model, policy, None)
            if reason_against is not None:
                self.ledger.skip(model, kind, None, reason_against, {"trigger": kind})
                raise NotNowError(f"{model} is not retrained now: {reason_against}.")
            return self._retrain(model, policy, kind, reason, {}, None)

    def roll_back(self, model: str, version: str | None, reason: str) -> Launch:
        """Launch a rollback to `version`, or to the one before; allowed while paused.

        Raises:
            UnknownModelError: the policy has no such model.
            NotNowError: it has an active launch.
        """
        inputs = {"version": version or "", "deployment_target": self._policy(model).deployment_target or ""}
        with self.ledger.transaction():
            self._refuse_if_active(model)
            trigger = Trigger("human", reason, self.ledger.clock())
            return self.ledger.create(model, "rollback", trigger, plan={}, inputs=inputs, version=version)

    def pause(self, model: str, reason: str) -> bool:
        """Let nothing be launched for `model`; an active launch goes on, a queued one waits. False when paused already.

        Raises:
            UnknownModelError: the policy has no such model.
        """
        self._policy(model)
        return self.ledger.pause(model, reason)

    def resume(self, model: str, reason: str) -> bool:
        """End the pause; False when there is none.

        Raises:
            UnknownModelError: the policy has no such model.
        """
        self._policy(model)
        return self.ledger.resume(model, reason)

    def _policy(self, model: str) -> ModelPolicy:
        policy = self.policy.models.get(model)
        if policy is None:
            raise UnknownModelError(f"The policy has no model {model!r}, only {', '.join(self.policy.models)}.")
        return policy

    def _retrain(
        self,
        model: str,
        policy: ModelPolicy,
        kind: TriggerKind,
        reason: str,
        labels: dict[str, str],
        version: str | None,
    ) -> Launch:
        trigger = Trigger(kind, reason, self.ledger.clock(), labels)
        plan: dict[str, Any] = {
            name: plan.model_dump()
            for name, plan in (("local", policy.launch.local), ("flyte", policy.launch.flyte))
            if plan is not None
        }
        plan["max_run_seconds"] = policy.max_run_seconds
        return self.ledger.create(
            model, "retrain", trigger, plan=plan, inputs=policy.workflow_inputs(), version=version
        )

    def _answer_before(self, alert: Alert, policy: ModelPolicy) -> Decision | None:
        """The decision when nothing has to be decided any more about this episode."""
        answered_by, is_over = self.ledger.see_episode(*_episode(alert))
        if is_over:
            return Decision(Result.REPEATED, "this alert has been resolved")
        if answered_by is not None and not self._may_relaunch(policy, answered_by):
            return Decision(Result.REPEATED, "this alert has been answered", answered_by)
        return None

    def _answer_now(self, alert: Alert, policy: ModelPolicy) -> Decision:
        active = self.ledger.active_launch(alert.model)
        if active is not None and _is_answered_by(alert, active):
            self.ledger.answer_episode(*_episode(alert), active.id)
            return Decision(Result.JOINED, "a launch is active", active.id)
        reason = self._obstacle(alert.model, policy, alert.version)
        if reason is not None:
            details = {"alert": alert.name, "labels": alert.labels}
            self.ledger.skip(alert.model, alert.name, alert.version, reason, details)
            return Decision(Result.SKIPPED, reason)
        summary = alert.annotations.get("summary") or alert.name
        launch = self._retrain(alert.model, policy, "alert", summary, alert.labels, alert.version)
        self.ledger.answer_episode(*_episode(alert), launch.id)
        return Decision(Result.LAUNCHED, summary, launch.id)

    def _may_relaunch(self, policy: ModelPolicy, launch_id: str) -> bool:
        launch = self.ledger.get(launch_id)
        if launch.state is State.FAILED:
            return True
        if policy.relaunch_after_seconds is None or launch.state not in FINAL:
            return False
        since = self.ledger.seconds_since_last(launch.model)
        return since is not None and since >= policy.relaunch_after_seconds

    def _obstacle(self, model: str, policy: ModelPolicy, version: str | None) -> str | None:
        """Why nothing may be launched now, None when it may; the same words for the same reason, see `Ledger.skip`."""
        since = self.ledger.seconds_since_last(model)
        obstacles = {
            "the version has been replaced": version is not None and self.ledger.is_replaced(model, version),
            "the model is paused": self.ledger.paused(model) is not None,
            "a launch for another version is active": self.ledger.active_launch(model) is not None,
            "these are quiet hours": policy.is_quiet(self.ledger.clock()),
            "the cooldown after the last launch is not over": since is not None and since < policy.cooldown_seconds,
            "the daily budget of launches is used up": (
                self.ledger.retrainings_within_a_day(model) >= policy.max_launches_per_day
            ),
        }
        return next((reason for reason, applies in obstacles.items() if applies), None)

    def _refuse_if_busy(self, model: str) -> None:
        paused = self.ledger.paused(model)
        if paused is not None:
            raise NotNowError(f"{model} is paused ({paused}): resume it first.")
        self._refuse_if_active(model)

    def _refuse_if_active(self, model: str) -> None:
        active = self.ledger.active_launch(model)
        if active is not None:
            raise NotNowError(f"{model} has launch {active.id} active ({active.state.value}): wait until it has ended.")


def _episode(alert: Alert) -> tuple[str, str, str]:
    return alert.model, alert.fingerprint, alert.starts_at


def _is_answered_by(alert: Alert, active: Launch) -> bool:
    return active.action == "retrain" and (None in (alert.version, active.version) or alert.version == active.version)
