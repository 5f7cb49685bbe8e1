"""The second half of `make demo`: the pictures change, and the model evolves without a human step.

Traffic runs from the first to the last second. It is steady at first; then every picture is turned. From there on this module
only looks: alert, launch, training, gate and roll-out are the evolution service's doing.

No picture by which the new version is measured in the end was ever sent before: traffic draws from the validation split while
it is steady, from the training split while it drifts, and from the holdout once the new version answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from semr.errors import DependencyUnavailableError, SemrError
from semr.evolution.audit import AuditRecord
from semr.evolution.client import EvolutionClient
from semr.evolution.timeline import timeline_line
from semr.monitoring import queries
from semr.monitoring.prometheus import Prometheus
from semr.traffic import Tally
from workflow_examples.mnist.distortions import Distortion
from workflow_examples.mnist.traffic import Pool, Traffic

_LOOK_SECONDS = 0.5
# The evolution service is asked less often: it asks MLflow and the object store in turn.
_ASK_SECONDS = 1.5
# Time that the display's numbers cover.
_SIGHT_SECONDS = 4.0
# The numbers of a phase begin when the requests of the one before have been answered.
_SETTLING_SECONDS = 2.0


class NotEvolvedError(SemrError):
    """No new version came into service in time."""


@dataclass(frozen=True)
class LoopPlan:
    """How the loop is shown; times in seconds.

    Attributes:
        rate: requests a second.
        pictures: in each request.
        label_share: share of the requests whose labels come, a second later.
        drift: what happens to the pictures.
        steady_seconds: traffic before it does.
        after_seconds: traffic after the new version has been accepted.
        patience_seconds: given up when it takes longer from the drift to the end of the launch.
    """

    rate: float = 10.0
    pictures: int = 8
    label_share: float = 1.0
    drift: Distortion = field(default_factory=lambda: Distortion("rotate", 35.0))
    steady_seconds: float = 20.0
    after_seconds: float = 10.0
    patience_seconds: float = 900.0


@dataclass(frozen=True)
class LoopReport:
    """What happened; times in seconds since the drift's first request.

    Attributes:
        before, drifted, after: traffic before the drift, from then until the new version answered, and after its acceptance.
        whole: all of it.
        old_version: served before.
        new_version: served in the end.
        alert_seconds: until the evolution service decided to retrain.
        live_seconds: until the new version answered.
        settled_seconds: until it was accepted.
        errors: the first messages of failed requests.
        records: audit records since the start.
    """

    before: Tally
    drifted: Tally
    after: Tally
    whole: Tally
    old_version: str
    new_version: str
    alert_seconds: float
    live_seconds: float
    settled_seconds: float
    errors: list[str]
    records: list[AuditRecord]


def show_loop(url: str, model: str, plan: LoopPlan, console: Console) -> LoopReport:
    """Run traffic, let the pictures drift, and show what happens until a new version has been accepted.

    Args:
        url: what stands before `/v2`.
        model: registered model, which is served there.
        plan: how.
        console: gets a line for every decision, and a live display when it is a terminal.

    Raises:
        NotEvolvedError: no new version was accepted in time.
        DependencyUnavailableError: the model server or the evolution service does not answer.
    """
    steady, drifting, unseen = (Pool.of_split(split) for split in ("validation", "train", "holdout"))
    with (
        EvolutionClient() as client,
        Traffic(url, model, plan.rate, steady, rows=plan.pictures, feedback_share=plan.label_share) as traffic,
        Live(console=console, transient=True, auto_refresh=False) as live,
    ):
        view = _View(model, traffic, client, live, console)
        view.keep_looking(plan.steady_seconds, "steady traffic")
        traffic.pool, traffic.distortion = drifting, plan.drift
        drift_at = time.monotonic()
        console.print(f"{view.clock()}  the pictures change: {plan.drift.kind} {plan.drift.strength:g}")
        old_version = max(traffic.tally().versions, key=int)
        deadline = drift_at + plan.patience_seconds
        live_at = view.look_until(
            lambda: traffic.newest_version() != old_version, "the pictures have changed", deadline
        )
        traffic.pool = unseen
        console.print(f"{view.clock()}  version {traffic.newest_version()} answers")
        settled_at = view.look_until(view.is_settled, "the new version is watched", deadline)
        view.keep_looking(plan.after_seconds, "after")
        return LoopReport(
            before=traffic.tally(view.started + _SETTLING_SECONDS, drift_at),
            drifted=traffic.tally(drift_at + _SETTLING_SECONDS, live_at),
            after=traffic.tally(max(settled_at, live_at + _SETTLING_SECONDS)),
            whole=traffic.tally(),
            old_version=old_version,
            new_version=str(traffic.newest_version()),
            alert_seconds=view.triggered_at - drift_at,
            live_seconds=live_at - drift_at,
            settled_seconds=settled_at - drift_at,
            errors=traffic.errors[:3],
            records=view.records,
        )


@dataclass
class _View:
    """What is known of the loop, and its display."""

    model: str
    traffic: Traffic
    client: EvolutionClient
    live: Live
    console: Console
    records: list[AuditRecord] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    drift: float | None = None

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self._started_at = time.time()
        self._prometheus = Prometheus()
        self._ask_at = 0.0

    @property
    def triggered_at(self) -> float:
        """When the evolution service decided to retrain, on the clock of `time.monotonic`; NaN before."""
        times = (record.time for record in self.records if record.kind == "triggered")
        return self.started + next(times, math.nan) - self._started_at

    def clock(self) -> str:
        """Seconds since the start, as lines begin with them."""
        return f"{time.monotonic() - self.started:5.0f} s"

    def keep_looking(self, seconds: float, phase: str) -> None:
        """Show what happens for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look(phase)

    def look_until(self, is_reached: Callable[[], bool], phase: str, deadline: float) -> float:
        """Show what happens until something has; returns when, on the clock of `time.monotonic`.

        Raises:
            NotEvolvedError: not before the deadline.
        """
        while not is_reached():
            if time.monotonic() > deadline:
                raise NotEvolvedError(f"No new version of {self.model} was accepted in time: see `semr history`.")
            self._look(phase)
        return time.monotonic()

    def is_settled(self) -> bool:
        """Whether the launch that brought the new version has ended."""
        last = self.state.get("last_launch")
        return self.state.get("active_launch") is None and last is not None and last["state"] == "succeeded"

    def _look(self, phase: str) -> None:
        began = time.monotonic()
        if began >= self._ask_at:
            self._ask_at = began + _ASK_SECONDS
            self._read()
        self.live.update(self._display(phase), refresh=True)
        time.sleep(max(0.0, _LOOK_SECONDS - (time.monotonic() - began)))

    def _read(self) -> None:
        self.state = next(each for each in self.client.models() if each["model"] == self.model)
        known = {record.id for record in self.records}
        for fields in self.client.history(self.model)["records"]:
            record = AuditRecord(**fields)
            if record.time < self._started_at or record.id in known:
                continue
            self.records.append(record)
            self.console.print(
                f"{record.time - self._started_at:5.0f} s  {timeline_line(record).split('  ', 1)[1]}",
                highlight=False,
                markup=False,
            )
        try:
            self.drift = self._prometheus.value(f"max({queries.input_drift(self.model)})")
        except DependencyUnavailableError:
            self.drift = None  # the display goes on without it

    def _display(self, phase: str) -> Table:
        now = time.monotonic()
        tally = self.traffic.tally(now - _SIGHT_SECONDS, now)
        active = self.state.get("active_launch")
        table = Table(show_header=False, box=None, padding=(0, 2))
        table.add_row("", f"[bold]{phase}[/]  {self.clock()}")
        table.add_row(
            "requests", f"{tally.sent / _SIGHT_SECONDS:.0f} a second, {self.traffic.tally().failed} failed so far"
        )
        table.add_row("versions", ", ".join(f"{version}: {count}" for version, count in sorted(tally.versions.items())))
        table.add_row("accuracy", _bar(tally.accuracy))
        table.add_row("input drift", "–" if self.drift is None else f"{self.drift:.2f}  (alert above 0.25)")
        table.add_row("evolution", f"{active['action']}: {active['state']}" if active else "idle")
        return table


def _bar(share: float, width: int = 30) -> str:
    if math.isnan(share):
        return "–"
    colour = "green" if share >= 0.95 else "yellow" if share >= 0.85 else "red"
    full = round(share * width)
    return f"[{colour}]{'█' * full}[/]{'░' * (width - full)} {share:.3f}"
