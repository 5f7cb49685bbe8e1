"""The services of a stack, one definition each."""

from __future__ import annotations

from semr.stack.context import StackContext
from semr.stack.ports import PortRequest
from semr.stack.services.base import Service
from semr.stack.services.evolution import EvolutionService
from semr.stack.services.mlflow_server import MlflowService
from semr.stack.services.object_store import object_store_class
from semr.stack.services.prometheus import AlertmanagerService, PrometheusService
from semr.stack.services.ray_head import RayService
from semr.stack.state import StateFolder


def service_classes(folder: StateFolder) -> tuple[type[Service], ...]:
    """One class for each name of `SERVICE_NAMES`, in its order."""
    return (
        object_store_class(folder),
        MlflowService,
        RayService,
        PrometheusService,
        AlertmanagerService,
        EvolutionService,
    )


def check_installed(folder: StateFolder) -> None:
    """Raise `ProgramMissingError` for the first server program that is not installed."""
    for service in service_classes(folder):
        service.check_installed()


def port_requests(folder: StateFolder) -> list[PortRequest]:
    """The ports of all services."""
    return [request for service in service_classes(folder) for request in service.port_requests()]


def build_services(context: StackContext) -> list[Service]:
    """All services of the stack, in the order of `SERVICE_NAMES`."""
    object_store = object_store_class(context.folder)(context)
    ray = RayService(context)
    return [
        object_store,
        MlflowService(context),
        ray,
        PrometheusService(context, object_store, ray),
        AlertmanagerService(context),
        EvolutionService(context),
    ]
