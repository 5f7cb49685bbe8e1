"""The policy: when a model may be retrained, by which launch plan, and with which limits.

One YAML file holds the policy of every model. It is read strictly: a key that is not known is an error, which names the key
and what is allowed in its place, since a limit with a typing error in its name would be no limit.
"""

from __future__ import annotations

from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from semr.errors import InvalidInputError

Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS: tuple[Weekday, ...] = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# What the service itself gives to every retraining workflow; a policy must not set these.
OWN_INPUTS = ("model_name", "launch_id", "trigger")


class PolicyError(InvalidInputError):
    """The policy file cannot be read or does not say what is allowed."""


class _Strict(BaseModel):
    # The JSON schema, of which the chart's own is made, says all that the validators check in words of their own.
    model_config = ConfigDict(frozen=True, strict=False, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: object) -> object:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"there is no key {key!r} here; allowed are {', '.join(cls.model_fields)}")
        return data


def _clock_time(value: object) -> object:
    # YAML 1.1 reads an unquoted 22:00 as a number to the base of 60, which is minutes since midnight.
    return f"{value // 60:02d}:{value % 60:02d}" if isinstance(value, int) and 0 <= value < 24 * 60 else value


ClockTime = Annotated[
    time,
    BeforeValidator(_clock_time),
    WithJsonSchema({"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$"}),
]


class LocalPlan(_Strict):
    """A Flyte workflow that runs in a process of its own on this machine.

    Attributes:
        module: importable module that holds it.
        workflow: its name there.
    """

    module: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
    workflow: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


class FlytePlan(_Strict):
    """A launch plan that is registered on a Flyte backend.

    Attributes:
        launch_plan: its full name.
        version: the newest one when left out.
    """

    launch_plan: Annotated[str, Field(min_length=1)]
    version: str | None = None


class LaunchPlan(_Strict):
    """What is launched; `local` by the local launcher, `flyte` by the Flyte launcher, with the same inputs.

    Attributes:
        inputs: inputs of the workflow over those that the service and the rest of the policy give, in the workflow's types:
            Flyte takes 60.0 for a float, not 60.
    """

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["local"]}, {"required": ["flyte"]}]})

    local: LocalPlan | None = None
    flyte: FlytePlan | None = None
    inputs: dict[str, bool | int | float | str] = Field(
        default_factory=dict, json_schema_extra={"propertyNames": {"not": {"enum": list(OWN_INPUTS)}}}
    )

    @model_validator(mode="after")
    def _check(self) -> LaunchPlan:
        if self.local is None and self.flyte is None:
            raise ValueError("it names nothing to launch: add local (module, workflow) or flyte (launch_plan)")
        own = [name for name in self.inputs if name in OWN_INPUTS]
        if own:
            raise ValueError(f"the input {own[0]!r} is given by the service: take it out of inputs")
        return self


class QuietHours(_Strict):
    """A time of day at which alerts launch nothing; over midnight when `end` is not after `start`.

    Attributes:
        start: local time, `HH:MM`.
        end: local time, `HH:MM`, not included.
        timezone: name of the IANA time zone database, such as Europe/Berlin.
        days: weekdays on which it starts.
    """

    start: ClockTime
    end: ClockTime
    timezone: str = "UTC"
    days: tuple[Weekday, ...] = WEEKDAYS

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(
                f"{value!r} is not a time zone of this system; expected a name such as UTC or Europe/Berlin"
            ) from error
        return value

    def contains(self, now: float) -> bool:
        """Whether `now` (seconds since the epoch) lies within."""
        local = datetime.fromtimestamp(now, ZoneInfo(self.timezone))
        clock = local.time()
        if self.start < self.end:
            return self.start <= clock < self.end and WEEKDAYS[local.weekday()] in self.days
        if clock >= self.start:
            return WEEKDAYS[local.weekday()] in self.days
        return clock < self.end and WEEKDAYS[(local - timedelta(days=1)).weekday()] in self.days


class GateThresholds(_Strict):
    """What a challenger has to reach; what is set is passed on to the workflow as inputs of the same names.

    Attributes:
        min_gain: the interval of the gain on the recent holdout has to be above this (accuracy, 0 to 1).
        allowed_loss_on_old: allowed loss of accuracy (0 to 1) on the champion's original holdout.
        confidence: of the interval that the gain has to be clear of, between 0.5 and 1.
        latency_factor: largest latency of the challenger in that of the champion.
        max_size_mb: largest model, in megabytes.
    """

    min_gain: Annotated[float, Field(ge=-1, le=1)] | None = None
    allowed_loss_on_old: Annotated[float, Field(ge=0, le=1)] | None = None
    confidence: Annotated[float, Field(ge=0.5, lt=1)] | None = None
    latency_factor: Annotated[float, Field(gt=0)] | None = None
    max_size_mb: Annotated[float, Field(gt=0)] | None = None


class Verification(_Strict):
    """How a new version is watched; what is set is passed on to the workflow as inputs named `verification_<field>`.

    Attributes:
        seconds: least length of the window.
        least_requests: requests without which the window says nothing.
        margin: by how much live accuracy (0 to 1) may be below the champion's.
    """

    seconds: Annotated[float, Field(gt=0)] | None = None
    least_requests: Annotated[int, Field(ge=1)] | None = None
    margin: Annotated[float, Field(ge=0, le=1)] | None = None


class ModelPolicy(_Strict):
    """The policy of one model.

    Attributes:
        alerts: names of the alerts that retrain it.
        launch: what is launched.
        cooldown_seconds: least time between the end of a launch and the next one.
        max_launches_per_day: retrainings within any 24 hours.
        max_run_seconds: after this time a launch is ended and counts as failed.
        relaunch_after_seconds: an alert that has been answered by a launch and still fires launches again after this time;
            None: never, one episode of an alert launches once.
        quiet_hours: when alerts launch nothing.
        gate: thresholds of the gate.
        verification: the window after a deployment.
        keep_recordings_days: recorded requests and labels that are older are deleted; nothing learns from them any more.
        deployment_target: where the model is served, when not where the contract says; passed on to the workflow if set.
    """

    alerts: Annotated[tuple[str, ...], Field(min_length=1)]
    launch: LaunchPlan
    cooldown_seconds: Annotated[int, Field(ge=0)] = 3600
    max_launches_per_day: Annotated[int, Field(ge=1)] = 4
    max_run_seconds: Annotated[int, Field(ge=1)] = 6 * 3600
    relaunch_after_seconds: Annotated[int, Field(ge=1)] | None = None
    quiet_hours: tuple[QuietHours, ...] = ()
    gate: GateThresholds = GateThresholds()
    verification: Verification = Verification()
    keep_recordings_days: Annotated[float, Field(gt=0)] = 30.0
    deployment_target: Literal["ray_serve", "helm"] | None = None

    def workflow_inputs(self) -> dict[str, bool | int | float | str]:
        """Inputs of the workflow that the policy gives; thresholds that it does not set are left to the workflow."""
        window = {f"verification_{name}": value for name, value in self.verification.model_dump().items()}
        thresholds = {**self.gate.model_dump(), **window, "deployment_target": self.deployment_target}
        return {**{name: value for name, value in thresholds.items() if value is not None}, **self.launch.inputs}

    def is_quiet(self, now: float) -> bool:
        """Whether `now` (seconds since the epoch) is within quiet hours."""
        return any(hours.contains(now) for hours in self.quiet_hours)


class Policy(_Strict):
    """The policies of all models, by the name under which they are registered."""

    models: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")], ModelPolicy] = Field(
        json_schema_extra={"additionalProperties": False, "minProperties": 1}
    )

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: dict[str, ModelPolicy]) -> dict[str, ModelPolicy]:
        if not value:
            raise ValueError("it names no model, so nothing would ever be retrained")
        return value


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        PolicyError: it cannot be read, is not YAML, or has a key or value that is not allowed.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"The policy {path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PolicyError(f"The policy {path} is not YAML: {' '.join(str(error).split())}.") from error
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        what = first["msg"].removeprefix("Value error, ")
        raise PolicyError(f"The policy {path} cannot be used: {where + ': ' if where else ''}{what}.") from error
