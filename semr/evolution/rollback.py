"""Bring an earlier version back into service and make it the champion."""

from __future__ import annotations

from semr.deployment.choice import deployment_target
from semr.evolution.launch import Outcome, State
from semr.registry import CHAMPION, PREVIOUS, Registry
from semr.settings import Settings, get_settings


def roll_back(
    model: str, version: str | None, reason: str, settings: Settings | None = None, target: str = ""
) -> Outcome:
    """Serve `version` of `model` (None: the one with the alias `previous`), then move the alias `champion` to it.

    `target` names the deployment target, when it is not that of the settings.

    In this order a failed deployment leaves champion and service as they were.

    Raises:
        ModelNotFoundError: there is no such version, or no previous one.
        DeploymentError: it did not come into service.
        DependencyUnavailableError: MLflow or the deployment target does not answer.
    """
    settings = settings or get_settings()
    registry = Registry(settings)
    goal = registry.get(model, version or PREVIOUS)
    before = registry.find(model, CHAMPION)
    deployment_target(settings, target).deploy(goal)
    registry.roll_back(model, goal.version)
    return Outcome(
        state=State.ROLLED_BACK,
        reason=reason,
        challenger_version=before.version if before is not None and before.version != goal.version else None,
        champion_version=goal.version,
    )
