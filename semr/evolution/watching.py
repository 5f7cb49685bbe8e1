"""The other way to a retraining: a workflow that looks at the alerts by itself, for sites that want no inbound webhook."""

from __future__ import annotations

import json
from typing import Literal

from semr.evolution.client import EvolutionClient, RefusedError
from semr.monitoring import queries
from semr.monitoring.prometheus import Prometheus
from semr.settings import get_settings


def look(model: str) -> Literal["stay", "ask", "retrain"]:
    """What is to be done, by the rules that Prometheus evaluates for everybody; `ask` where there is an evolution service."""
    if not Prometheus().query(queries.firing_alerts(model)):
        return "stay"
    return "ask" if get_settings().evolution_url else "retrain"


def ask(model: str, asker: str) -> str:
    """Ask the evolution service, whose policy and ledger then decide: cooldown, budget, one launch at a time.

    Returns:
        A verdict with its reason, as JSON.
    """
    with EvolutionClient() as client:
        try:
            launch = client.retrain(model, f"an alert fires ({asker})", kind="cron")
        except RefusedError as refusal:
            return json.dumps({"verdict": "unchanged", "reason": str(refusal)})
    return json.dumps({"verdict": "launched", "reason": f"launch {launch['id']} of the evolution service"})


def stay(model: str) -> str:
    """Nothing to do: a verdict with its reason, as JSON."""
    return json.dumps({"verdict": "unchanged", "reason": f"no alert fires for {model}"})
