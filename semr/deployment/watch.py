"""The first minutes of a deployed version: does it do on live traffic what it did on the holdout?

Counters of a version start when it does, so its live accuracy and error ratio since its deployment are plain ratios
of them, right over any number of replicas. They are compared with what the version before it did on live traffic.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.monitoring import queries
from semr.monitoring.prometheus import Prometheus
from semr.registry import ModelVersionRef

Outcome = Literal["kept", "worse", "unseen"]

_POLL_SECONDS = 1.0
_AWAY_SECONDS = 5.0


@dataclass(frozen=True)
class WatchPlan:
    """How a deployed version is watched.

    Attributes:
        window_seconds: how long at least.
        least_requests: answered requests before anything is said of errors.
        least_labels: predictions with a known label before anything is said of accuracy.
        accuracy_margin: live accuracy may be so much below the champion's before it.
        error_margin: likewise for the share of failed requests, above it.
        patience_seconds: with too little traffic, how long to go on watching beyond the window.
    """

    window_seconds: float = 300.0
    least_requests: int = 100
    least_labels: int = 50
    accuracy_margin: float = 0.02
    error_margin: float = 0.01
    patience_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("window_seconds", "least_requests", "least_labels", "patience_seconds"):
            if getattr(self, name) < 0:
                raise InvalidInputError(f"{name} must not be negative, not {getattr(self, name)}.")


@dataclass(frozen=True)
class LiveNumbers:
    """A version on live traffic: answered requests, share that failed, labelled predictions, share that was right.

    A share is None when there is nothing that it could be a share of.
    """

    requests: float
    error_ratio: float | None
    labels: float
    accuracy: float | None


@dataclass(frozen=True)
class WatchReport:
    """What the watch came to; `before` are the numbers of the version that was replaced, None if there was none."""

    outcome: Outcome
    reason: str
    seconds: float
    now: LiveNumbers
    before: LiveNumbers | None


def live_numbers(prometheus: Prometheus, ref: ModelVersionRef, window_seconds: float | None = None) -> LiveNumbers:
    """Numbers of a version over the last `window_seconds`, or since it was deployed when that is None."""
    requests, failed, labels, right = (
        prometheus.value(expression) or 0.0
        for expression in (
            queries.requests(ref.name, ref.version, window_seconds),
            queries.requests(ref.name, ref.version, window_seconds, status="5.."),
            queries.labels(ref.name, ref.version, window_seconds),
            queries.labels(ref.name, ref.version, window_seconds, correct="true"),
        )
    )
    # Ray's counters start at 1e-9, so that their series exist before the first count.
    requests, labels = round(requests, 3), round(labels, 3)
    return LiveNumbers(
        requests=requests,
        error_ratio=failed / requests if requests else None,
        labels=labels,
        accuracy=right / labels if labels else None,
    )


def watch(
    ref: ModelVersionRef,
    before: LiveNumbers | None,
    plan: WatchPlan,
    prometheus: Prometheus | None = None,
    say: Callable[[str], None] = print,
) -> WatchReport:
    """Watch `ref` for the plan's window; end early when it is clearly worse.

    Args:
        ref: the version that was just deployed.
        before: live numbers of the version before it, None when there are none to compare with.
        plan: how long, and what is worse.
        prometheus: where to ask.
        say: told once when there is too little traffic to judge.

    Raises:
        DependencyUnavailableError: Prometheus is away for longer than the plan's patience.
    """
    prometheus = prometheus or Prometheus()
    started = time.monotonic()
    said_so = False
    while True:
        seconds = time.monotonic() - started
        try:
            now = live_numbers(prometheus, ref)
        except DependencyUnavailableError as error:
            # The counters are the servers' own and go on: what is missed now is seen when it is back.
            if seconds >= plan.window_seconds + plan.patience_seconds:
                raise
            say(f"{ref.uri}: {error} Watching on.")
            time.sleep(_AWAY_SECONDS)
            continue
        fault = _fault(now, before, plan)
        if fault:
            return WatchReport("worse", fault, seconds, now, before)
        missing = _missing(now, before, plan)
        if seconds >= plan.window_seconds:
            if not missing:
                return WatchReport("kept", _praise(now), seconds, now, before)
            if seconds >= plan.window_seconds + plan.patience_seconds:
                return WatchReport("unseen", f"too little traffic to judge: {missing}", seconds, now, before)
            if not said_so:
                say(
                    f"{ref.uri}: too little traffic to judge ({missing}); watching on for {plan.patience_seconds:g} s at most"
                )
                said_so = True
        time.sleep(_POLL_SECONDS)


def _fault(now: LiveNumbers, before: LiveNumbers | None, plan: WatchPlan) -> str:
    if now.error_ratio is not None and now.requests >= plan.least_requests:
        allowed = (before.error_ratio if before and before.error_ratio is not None else 0.0) + plan.error_margin
        if now.error_ratio > allowed:
            return f"{now.error_ratio:.2%} of {now.requests:.0f} requests failed; at most {allowed:.2%} is allowed"
    if now.accuracy is not None and now.labels >= plan.least_labels and before and before.accuracy is not None:
        allowed = before.accuracy - plan.accuracy_margin
        if now.accuracy < allowed:
            return (
                f"live accuracy {now.accuracy:.4f} over {now.labels:.0f} labels; the version before it had "
                f"{before.accuracy:.4f}, and at least {allowed:.4f} is wanted"
            )
    return ""


def _missing(now: LiveNumbers, before: LiveNumbers | None, plan: WatchPlan) -> str:
    if now.requests < plan.least_requests:
        return f"{now.requests:.0f} of {plan.least_requests} requests"
    if before and before.accuracy is not None and now.labels < plan.least_labels:
        return f"{now.labels:.0f} of {plan.least_labels} labels"
    return ""


def _praise(now: LiveNumbers) -> str:
    accuracy = f", accuracy {now.accuracy:.4f} over {now.labels:.0f} labels" if now.accuracy is not None else ""
    return f"{now.requests:.0f} requests, {now.error_ratio or 0:.2%} failed{accuracy}"
