"""The watch over a new version while Prometheus is away: a server that does not answer is injected."""

from __future__ import annotations

import pytest

from semr.deployment import watch as watch_module
from semr.deployment.watch import WatchPlan, watch
from semr.errors import DependencyUnavailableError
from semr.monitoring.prometheus import Prometheus
from semr.registry import ModelVersionRef

REF = ModelVersionRef("mnist", "2", "models:/mnist/2", "run", {})


class Flaky(Prometheus):
    """Away for the first questions, then 500 requests and none failed."""

    def __init__(self, questions: float) -> None:
        self.left = questions

    def value(self, expression: str) -> float | None:
        if self.left > 0:
            self.left -= 1
            raise DependencyUnavailableError("Prometheus", "http://127.0.0.1:1", "refused")
        return 0.0 if "5.." in expression else 500.0


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_AWAY_SECONDS", 0.01)
    monkeypatch.setattr(watch_module, "_POLL_SECONDS", 0.01)


def test_the_watch_waits_for_prometheus_says_so_and_goes_on() -> None:
    said: list[str] = []
    report = watch(REF, None, WatchPlan(window_seconds=0.0), Flaky(2), said.append)
    assert report.outcome == "kept" and len(said) == 2 and "Prometheus" in said[0]


def test_the_watch_does_not_wait_for_ever() -> None:
    plan = WatchPlan(window_seconds=0.0, patience_seconds=0.05)
    with pytest.raises(DependencyUnavailableError):
        watch(REF, None, plan, Flaky(float("inf")), lambda _: None)
