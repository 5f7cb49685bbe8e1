"""The model server's host in Ray Serve: `build` makes an application whose replicas each hold one model version.

The version stands in the deployment's `user_config`, so that a switch is a change of configuration: Serve calls
`reconfigure` on every replica, which loads the new version beside the old one and keeps answering meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve._private import replica

from semr.inference.app import ServerState, create_app
from semr.inference.front import InferenceApplication
from semr.inference.holder import ModelHolder
from semr.inference.metrics import PrometheusSink, RaySink, ServerMetrics
from semr.inference.options import get_options
from semr.inference.runtime import load
from semr.monitoring.observer import Observer
from semr.settings import get_settings

logger = logging.getLogger(__name__)

DEPLOYMENT = "ModelServer"
IMPORT_PATH = f"{__name__}:build"
_LOOPBACK = "127.0.0.1"


def _application() -> InferenceApplication:
    """The application of the replica that calls this, which Serve does once it has made the replica's object."""
    return create_app(_state_of_this_replica, extensions=get_options().extensions)


def _state_of_this_replica() -> ServerState:
    server: ModelServer = serve.get_replica_context().servable_object
    return server.state


@serve.deployment(name=DEPLOYMENT)
@serve.ingress(_application)
class ModelServer:
    """One replica. It starts without a model; Serve calls `reconfigure` before it sends the first request."""

    def __init__(self, model: str) -> None:
        if ray.util.get_node_ip_address() == _LOOPBACK:
            _stay_on_loopback()
        # What this package has to say goes into the replica's log, beside Serve's own lines.
        logging.getLogger("semr").setLevel(logging.INFO)
        prometheus = PrometheusSink()
        metrics = ServerMetrics([prometheus, RaySink()])
        observer = Observer.from_settings(model, metrics.sinks, get_settings())
        options = get_options()
        if not options.threads:
            # A replica shares the node with others: it computes with the cores that it reserves, at least one.
            cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
            options = options.model_copy(update={"threads": max(1, int(cores))})
        holder = ModelHolder(model, metrics, watched_by=observer, loader=partial(load, model, options=options))
        self.state = ServerState(holder, prometheus, options)

    def __del__(self) -> None:
        # Serve calls this when it stops a replica: what is not recorded yet still can be.
        if hasattr(self, "state"):
            self.state.holder.observer.close()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Switch to `user_config["version"]`; a version that cannot be loaded is reported by the `ready` paths."""
        await asyncio.to_thread(self.state.holder.switch, str(user_config["version"]))


def _stay_on_loopback() -> None:
    """Bind the replica's gRPC server, which Serve starts next, to loopback as all of the node is.

    Replicas of one application call each other by it, ours do not; Serve (2.60, `_private/replica.py`) opens it on all
    interfaces nonetheless, takes requests from anybody, and unpickles them.
    """
    bind = getattr(replica, "add_port_to_grpc_server", None)
    if bind is None:
        logger.warning("Ray Serve opens its replicas' gRPC server in another way now: see on which address it listens.")
        return

    def bind_to_loopback(server: Any, address: str) -> int:  # noqa: ANN401 - grpc.aio.Server
        return int(bind(server, address.replace("[::]", _LOOPBACK)))

    replica.add_port_to_grpc_server = bind_to_loopback


def build(arguments: dict[str, str]) -> serve.Application:
    """Serve application of the registered model `arguments["model"]`."""
    return ModelServer.bind(arguments["model"])  # type: ignore[attr-defined]
