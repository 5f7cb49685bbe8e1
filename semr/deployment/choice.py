"""The deployment target that the contract names."""

from __future__ import annotations

from semr.deployment.helm import HelmTarget
from semr.deployment.ray_serve import RayServeTarget
from semr.deployment.target import DeploymentTarget
from semr.settings import Settings, get_settings


def deployment_target(settings: Settings | None = None) -> DeploymentTarget:
    """Ray Serve, or releases of the chart semr-inference."""
    settings = settings or get_settings()
    return HelmTarget(settings) if settings.deployment_target == "helm" else RayServeTarget(settings)
