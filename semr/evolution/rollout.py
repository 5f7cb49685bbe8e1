"""From a verdict of the gate to a settled champion: deploy, promote, watch on live traffic, and back if it does worse.

Every decision is a record of the audit trail and a tag of the model version, in that order: a reader of the registry never
sees a decision that the trail does not have.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from semr.deployment.target import DeploymentError, DeploymentTarget
from semr.deployment.watch import WatchPlan, live_numbers, watch
from semr.evolution.audit import AuditTrail, Kind
from semr.evolution.gate import GateReport
from semr.monitoring.prometheus import Prometheus
from semr.registry import ModelVersionRef, Registry

Verdict = Literal["promoted", "refused", "rolled_back"]


@dataclass(frozen=True)
class Outcome:
    """How an evolution ended; what a retraining workflow returns as JSON.

    Attributes:
        verdict: the challenger is champion, was refused by the gate, or was taken back after doing worse live.
        reason: in one sentence.
        challenger_version: version that was trained.
        champion_version: version that is champion now.
    """

    verdict: Verdict
    reason: str
    challenger_version: str
    champion_version: str

    def to_json(self) -> str:
        """The outcome as JSON."""
        return json.dumps(asdict(self))


@dataclass
class Rollout:
    """Settles one challenger; `launch_id` ties its records together.

    Attributes:
        window_seconds: of the champion's live numbers before the change.
        say: told what happens.
    """

    registry: Registry
    target: DeploymentTarget
    audit: AuditTrail
    prometheus: Prometheus
    launch_id: str = ""
    window_seconds: float = 600.0
    say: Callable[[str], None] = print

    def settle(
        self,
        champion: ModelVersionRef,
        challenger: ModelVersionRef,
        gate: GateReport,
        plan: WatchPlan,
        replicas: int | None = None,
    ) -> Outcome:
        """Do what the gate's verdict asks for.

        Raises:
            DependencyUnavailableError: a service is away; the champion is served, or running the step again completes it.
        """
        self._note(
            "gate",
            challenger,
            verdict=gate.verdict,
            reason=gate.reason,
            recent=asdict(gate.recent),
            old=asdict(gate.old),
            checks=[asdict(check) for check in gate.checks],
        )
        self.registry.set_tags(challenger, {"semr.gate.verdict": gate.verdict, "semr.gate.reason": gate.reason})
        if not gate.promotes:
            return self._end("refused", gate.reason, challenger, champion)
        before = live_numbers(self.prometheus, champion, self.window_seconds)
        try:
            self.target.deploy(challenger, replicas=replicas)
        except DeploymentError as error:
            return self._end("rolled_back", str(error), challenger, champion)
        self._note("deployed", challenger, instead_of=champion.version)
        self.registry.promote(challenger)
        report = watch(challenger, before, plan, self.prometheus, self.say)
        self._note("verified", challenger, **asdict(report))
        self.registry.set_tags(challenger, {"semr.verification": f"{report.outcome}: {report.reason}"})
        if report.outcome == "worse":
            self.target.deploy(champion, replicas=replicas)
            self.registry.take_back(challenger, champion)
            return self._end("rolled_back", report.reason, challenger, champion)
        return self._end("promoted", f"{gate.reason}; live: {report.reason}", challenger, challenger)

    def _end(self, verdict: Verdict, reason: str, challenger: ModelVersionRef, champion: ModelVersionRef) -> Outcome:
        self._note(verdict, challenger, reason=reason, champion_version=champion.version)
        self.registry.set_tags(challenger, {"semr.outcome": f"{verdict}: {reason}"[:4000]})
        self.say(f"{challenger.uri} {verdict.replace('_', ' ')}: {reason}")
        return Outcome(verdict, reason, challenger.version, champion.version)

    def _note(self, kind: Kind, about: ModelVersionRef, **details: Any) -> None:  # noqa: ANN401 - JSON values
        self.audit.append(about.name, kind, launch_id=self.launch_id, version=about.version, details=details)
