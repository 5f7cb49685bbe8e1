"""The Ray Serve host among the servers that are compared: an embedded stack, with Serve's own proxy or with HAProxy."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import mlflow
import psutil

from bench.serving.models import BenchModel
from bench.serving.servers import RunningServer, ServerKind
from semr import tracking
from semr.deployment.ray_serve import RayServeTarget
from semr.registry import ModelVersionRef, Registry
from semr.settings import Settings
from semr.stack import control
from semr.stack.processes import is_marked

#: What Ray's documentation calls high-throughput serving: HAProxy, which ray[serve] brings, in place of the proxy in Python.
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
# They answer requests; the rest of Ray is there in any case.
_PARTS = ("ServeReplica:", "ProxyActor", "HAProxy", "haproxy")


@contextmanager
def started_in_ray(model: BenchModel, folder: Path, *, haproxy: bool) -> Iterator[RunningServer]:
    """The model in one replica of Ray Serve, until the end of the block."""
    name = "Ray Serve with HAProxy" if haproxy else "Ray Serve"
    state = folder / ".semr"
    # Ray adds 57 characters and more to it, and the path of a socket has 107 at most.
    place = Path(tempfile.mkdtemp(prefix="hp-"))
    variables = HAPROXY | _own_files(place) if haproxy else {}
    try:
        with patch.dict(os.environ, variables):
            settings = control.up(state)
        ref = _register(settings, model)
        url = urlsplit(RayServeTarget(settings).deploy(ref))
        path = f"{url.path}/v2/models/{model.name}/infer"
        kind = ServerKind(f"{name}, ONNX Runtime", [], "", path, model.body())
        stack_id = json.loads((state / "identity.json").read_text())["stack_id"]
        yield RunningServer(kind, int(url.port or 0), partial(_proxy_and_replica, stack_id))
    finally:
        control.down(state)
        shutil.rmtree(place, ignore_errors=True)


def _proxy_and_replica(stack_id: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if any(part in command for part in _PARTS) and is_marked(process, stack_id):
                found.append(process)
    return found


def _own_files(folder: Path) -> dict[str, str]:
    """HAProxy's files, which all Serve instances of a machine would share by default."""
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }


def _register(settings: Settings, model: BenchModel) -> ModelVersionRef:
    """The model's files as they are, as version 1 of the stack's registry."""
    client = tracking.connect(settings)
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(model.keras), "model")
    client.create_registered_model(model.name)
    version = client.create_model_version(
        model.name, source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id, await_creation_for=0
    )
    return Registry(settings).get(model.name, str(version.version))
