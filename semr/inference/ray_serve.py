"""The model server's host in Ray Serve: `build` makes an application whose replicas each hold one model version.

The version stands in the deployment's `user_config`, so that a switch is a change of configuration: Serve calls
`reconfigure` on every replica, which loads the new version beside the old one and keeps answering meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve

from semr.inference.app import ServerState, create_app
from semr.inference.holder import ModelHolder
from semr.inference.metrics import PrometheusSink, RaySink, ServerMetrics
from semr.monitoring.observer import Observer
from semr.settings import get_settings

DEPLOYMENT = "ModelServer"
IMPORT_PATH = f"{__name__}:build"


def _state_of_this_replica() -> ServerState:
    replica: ModelServer = serve.get_replica_context().servable_object
    return replica.state


@serve.deployment(name=DEPLOYMENT)
@serve.ingress(create_app(_state_of_this_replica))
class ModelServer:
    """One replica. It starts without a model; Serve calls `reconfigure` before it sends the first request."""

    def __init__(self, model: str) -> None:
        prometheus = PrometheusSink()
        metrics = ServerMetrics([prometheus, RaySink()])
        observer = Observer.from_settings(model, metrics.sinks, get_settings())
        self.state = ServerState(ModelHolder(model, metrics, watched_by=observer), prometheus)

    def __del__(self) -> None:
        # Serve calls this when it stops a replica: what is not recorded yet still can be.
        if hasattr(self, "state"):
            self.state.holder.observer.close()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Switch to `user_config["version"]`; a version that cannot be loaded is reported by the `ready` paths."""
        await asyncio.to_thread(self.state.holder.switch, str(user_config["version"]))


def build(arguments: dict[str, str]) -> serve.Application:
    """Serve application of the registered model `arguments["model"]`."""
    return ModelServer.bind(arguments["model"])  # type: ignore[attr-defined]
