"""The servers that are compared, each started as processes of its own on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psutil

from bench.serving.models import BenchModel

_START_SECONDS = 300.0
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class ServerKind:
    """A way to serve a model.

    Attributes:
        name: as it stands in the table.
        command: what to run, with `{port}` in it.
        ready: path that answers 200 when it is ready.
        path: where requests go.
        body: what they send.
        environment: variables besides the inherited ones.
    """

    name: str
    command: list[str]
    ready: str
    path: str
    body: bytes
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready."""

    kind: ServerKind
    port: int
    processes: Callable[[], list[psutil.Process]]

    def memory(self) -> float:
        """Memory of all of its processes in MB; shared pages count in proportion."""
        return sum(each.memory_full_info().pss for each in self.processes()) / 1e6


def kinds(model: BenchModel) -> list[ServerKind]:
    """All ways to serve `model` by a process; see `ray_host` for Ray Serve."""
    python = sys.executable
    uvicorn = [python, "-m", "uvicorn", "--port", "{port}", "--log-level", "warning"]
    scoring = [python, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", "{port}"]
    alone = [python, "-m", "semr.inference", "--port", "{port}", "--name", model.name]
    infer = f"/v2/models/{model.name}/infer"
    ready = "/v2/health/ready"
    return [
        ServerKind("alone, ONNX Runtime", [*alone, "--model", str(model.keras)], ready, infer, model.body()),
        ServerKind(
            "alone, 2 workers", [*alone, "--model", str(model.keras), "--workers", "2"], ready, infer, model.body()
        ),
        ServerKind(
            "bare ASGI, ONNX Runtime",
            [*uvicorn, "--no-access-log", "bench.serving.bare:app"],
            "/",
            "/",
            model.body(),
            {"BENCH_ONNX_FILE": str(model.onnx_file)},
        ),
        ServerKind(
            "alone, Keras", [*alone, "--model", str(model.keras), "--runtime", "native"], ready, infer, model.body()
        ),
        ServerKind(
            "mlflow models serve, ONNX", [*scoring, "-m", str(model.onnx)], "/ping", "/invocations", model.mlflow_body()
        ),
        ServerKind(
            "mlflow models serve, Keras",
            [*scoring, "-m", str(model.keras)],
            "/ping",
            "/invocations",
            model.mlflow_body(),
        ),
        ServerKind(
            "FastAPI + predict",
            [*uvicorn, "bench.serving.pattern:app"],
            "/health",
            "/predict",
            model.body(),
            {"BENCH_MODEL": str(model.keras)},
        ),
    ]


@contextmanager
def started(kind: ServerKind, folder: Path) -> Iterator[RunningServer]:
    """The server of `kind`, ready, until the end of the block."""
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port = free.getsockname()[1]
    command = [part.replace("{port}", str(port)) for part in kind.command]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={
                **os.environ,
                **kind.environment,
                # MLflow starts `uvicorn` by its name.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _is_ready(f"http://{_HOST}:{port}{kind.ready}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{kind.name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.3)
        yield RunningServer(kind, port, partial(_family, process.pid))
    finally:
        if process.poll() is None:
            family = _family(process.pid)
            for each in family:
                each.terminate()
            _, alive = psutil.wait_procs(family, timeout=20)
            for each in alive:
                each.kill()
            process.wait()


def _family(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
