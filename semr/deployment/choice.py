"""The deployment target that the contract names, or a policy in its place."""

from __future__ import annotations

from semr.deployment.helm import HelmTarget
from semr.deployment.ray_serve import RayServeTarget
from semr.deployment.target import DeploymentTarget
from semr.errors import InvalidInputError
from semr.settings import Settings, get_settings


def deployment_target(settings: Settings | None = None, name: str = "") -> DeploymentTarget:
    """Ray Serve (`ray_serve`), or releases of the chart semr-inference (`helm`); "" is the contract's choice.

    Raises:
        InvalidInputError: there is no such target.
    """
    settings = settings or get_settings()
    chosen = name or settings.deployment_target
    if chosen == "helm":
        return HelmTarget(settings)
    if chosen == "ray_serve":
        return RayServeTarget(settings)
    raise InvalidInputError(f"There is no deployment target {chosen!r}: name ray_serve or helm.")
