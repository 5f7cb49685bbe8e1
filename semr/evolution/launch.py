"""What a launch is: one retraining (or rollback) of one model, its trigger, its states and its outcome."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from semr.errors import InvalidInputError

Action = Literal["retrain", "rollback"]
TriggerKind = Literal["alert", "cron", "human"]

_REASON_CHARACTERS = 1000


class State(str, Enum):
    """States of a launch: the first three are active, of which a model has at most one launch."""

    QUEUED = "queued"
    LAUNCHING = "launching"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


ACTIVE = (State.QUEUED, State.LAUNCHING, State.RUNNING)
FINAL = (State.SUCCEEDED, State.REFUSED, State.ROLLED_BACK, State.FAILED)
_STATE_OF_VERDICT = {"promoted": State.SUCCEEDED, "refused": State.REFUSED, "rolled_back": State.ROLLED_BACK}
_VERDICT_OF_STATE = {state: verdict for verdict, state in _STATE_OF_VERDICT.items()}


@dataclass(frozen=True)
class Trigger:
    """Why a launch is made.

    Attributes:
        kind: what asked for it.
        reason: a phrase for a person.
        time: when, in seconds since the epoch.
        labels: labels of the alert, empty for other kinds.
    """

    kind: TriggerKind
    reason: str
    time: float
    labels: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The trigger as the workflow gets it."""
        return json.dumps({"kind": self.kind, "reason": self.reason, "time": self.time, "labels": self.labels})

    @classmethod
    def from_json(cls, text: str) -> Trigger:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Outcome:
    """How a launch ended.

    Attributes:
        state: a final state.
        reason: a sentence for a person.
        challenger_version: the version that was trained, or that a rollback took out of service; None if none was.
        champion_version: the version that is champion now, None when unknown.
    """

    state: State
    reason: str
    challenger_version: str | None = None
    champion_version: str | None = None

    @property
    def verdict(self) -> str:
        """`promoted`, `refused`, `rolled_back` or `failed`: also the kind of the audit record."""
        return _VERDICT_OF_STATE.get(self.state, self.state.value)

    def to_dict(self) -> dict[str, str | None]:
        """The outcome in the form that a workflow returns."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "challenger_version": self.challenger_version,
            "champion_version": self.champion_version,
        }


@dataclass(frozen=True)
class Launch:
    """One launch as the ledger holds it; times in seconds since the epoch.

    Attributes:
        id: 20 characters of a-z and 0-9, usable as the name of a Flyte execution.
        model: registered model.
        action: what is done.
        state: see `State`.
        plan: what the launcher runs, `{"local": {...}, "flyte": {...}}` as in the policy.
        inputs: inputs of the workflow.
        trigger: why.
        version: version that the alert was about, None when unknown.
        created: when it was decided.
        started: when its workflow started, None before.
        finished: when it ended, None before.
        attempts: how often a launcher was told to start it.
        pid: process that runs it, for the local launcher.
        detail: what it waits for, or how it ended.
        outcome: None while active.
    """

    id: str
    model: str
    action: Action
    state: State
    plan: dict[str, Any]
    inputs: dict[str, Any]
    trigger: Trigger
    version: str | None
    created: float
    started: float | None
    finished: float | None
    attempts: int
    pid: int | None
    detail: str
    outcome: Outcome | None

    def to_dict(self) -> dict[str, Any]:
        """The launch for people and programs that ask the service."""
        return {
            "id": self.id,
            "model": self.model,
            "action": self.action,
            "state": self.state.value,
            "trigger": json.loads(self.trigger.to_json()),
            "version": self.version,
            "created": self.created,
            "started": self.started,
            "finished": self.finished,
            "detail": self.detail,
            "outcome": self.outcome.to_dict() if self.outcome else None,
        }


def new_launch_id() -> str:
    """A new id: a letter and 76 random bits."""
    return f"e{uuid.uuid4().hex[:19]}"


def failed(reason: str) -> Outcome:
    """The outcome of a launch that did not come to a verdict."""
    return Outcome(State.FAILED, one_line(reason))


def parse_outcome(text: object) -> Outcome:
    """The outcome that a workflow returned.

    Args:
        text: JSON object with `verdict` (promoted, refused, rolled_back), `reason`, `challenger_version`,
            `champion_version`.

    Raises:
        InvalidInputError: it is not that.
    """
    try:
        content = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        content = None
    verdict = content.get("verdict") if isinstance(content, dict) else None
    if not isinstance(content, dict) or verdict not in _STATE_OF_VERDICT:
        raise InvalidInputError(
            f"The workflow returned {str(text)[:200]!r}: expected a JSON object whose verdict is one of "
            f"{', '.join(_STATE_OF_VERDICT)}."
        )
    return Outcome(
        state=_STATE_OF_VERDICT[verdict],
        reason=one_line(str(content.get("reason") or "")),
        challenger_version=_version(content.get("challenger_version")),
        champion_version=_version(content.get("champion_version")),
    )


def one_line(text: str) -> str:
    """`text` in one line, its end when it is too long: the end of a trace tells most."""
    return " ".join(text.split())[-_REASON_CHARACTERS:]


def _version(value: object) -> str | None:
    return None if value in (None, "") else str(value)
