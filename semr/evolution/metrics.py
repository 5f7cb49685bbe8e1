"""The evolution service's own metrics, named `semr_evolution_*`.

What concerns launches is read from the ledger when Prometheus asks, so that a restart of the service loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from semr.evolution.launch import ACTIVE, FINAL, Action
from semr.evolution.launches import Ledger
from semr.evolution.policy import Policy


class EvolutionMetrics:
    """Counters of this process and numbers from the ledger.

    Args:
        ledger: where the launches are.
        policy: its models are shown even before anything happened.
        dependencies: whether each dependency answers, by name.
    """

    def __init__(self, ledger: Ledger, policy: Policy, dependencies: Callable[[], dict[str, bool]]) -> None:
        self._ledger = ledger
        self._policy = policy
        self._dependencies = dependencies
        self._registry = CollectorRegistry()
        self.alerts = Counter(
            "semr_evolution_alerts",
            "Alerts received, by what became of them (model and alert only if the policy names them).",
            ("model", "alert", "result"),
            registry=self._registry,
        )
        self.webhook_requests = Counter(
            "semr_evolution_webhook_requests",
            "Requests to the webhook, by HTTP status.",
            ("status",),
            registry=self._registry,
        )
        self._registry.register(self)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks a collector for."""
        finished = CounterMetricFamily(
            "semr_evolution_launches", "Launches that ended.", labels=("model", "action", "state")
        )
        active = GaugeMetricFamily(
            "semr_evolution_active_launches", "Launches queued or running.", labels=("model", "state")
        )
        waiting = GaugeMetricFamily(
            "semr_evolution_launch_waiting",
            "1 while a queued launch waits for a dependency or a pause.",
            labels=("model",),
        )
        paused = GaugeMetricFamily("semr_evolution_paused", "1 while the model is paused.", labels=("model",))
        last = GaugeMetricFamily(
            "semr_evolution_last_launch_timestamp_seconds", "When the newest launch was decided.", labels=("model",)
        )
        # A counter that appears with its first event has no increase that a rule could see: all begin at 0.
        ended = {
            (model, action, state.value): 0
            for model in self._policy.models
            for action in get_args(Action)
            for state in FINAL
        }
        active_states = {state.value for state in ACTIVE}
        for model, action, state, number in self._ledger.counts():
            if state not in active_states:
                ended[model, action, state] = number
        for labels, number in ended.items():
            finished.add_metric(labels, number)
        launches = {launch.model: launch for launch in self._ledger.active()}
        for model in self._policy.models:
            current = launches.get(model)
            for state in ACTIVE:
                active.add_metric((model, state.value), float(current is not None and current.state is state))
            is_waiting = current is not None and current.detail.startswith("waiting")
            waiting.add_metric((model,), float(is_waiting))
            paused.add_metric((model,), float(self._ledger.paused(model) is not None))
            newest = self._ledger.launches(model, limit=1)
            if newest:
                last.add_metric((model,), newest[0].created)
        yield from (finished, active, waiting, paused, last)
        pending = GaugeMetricFamily(
            "semr_evolution_audit_pending_records", "Audit records not yet in the object store."
        )
        pending.add_metric((), float(self._ledger.pending_count()))
        yield pending
        up = GaugeMetricFamily(
            "semr_evolution_dependency_up", "1 while the dependency answers.", labels=("dependency",)
        )
        for name, answers in self._dependencies().items():
            up.add_metric((name,), float(answers))
        yield up
