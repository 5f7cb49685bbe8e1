"""Real model servers for tests: `python -m semr.inference` as a process, on models saved in a folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import mlflow
import numpy as np
from mlflow.models import infer_signature

START_SECONDS = 120
MODELS = Path(__file__).parent / "models"


@dataclass
class ServerProcess:
    """A server that was started, its address and what it logs."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path
    errors: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            answer = httpx.get(f"{self.url}/v2/health/ready", timeout=10)
            if answer.status_code == 200:
                return
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, f"{answer.text}\n{self.errors.read_text()}"
            time.sleep(0.1)

    def terminate(self, seconds: float = 40) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def server(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """The server of `arguments` on a free port; it is up, its model may be loading yet."""
    output, errors = folder / "server.out", folder / "server.err"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SEMR_")}
    command = [sys.executable, "-m", "semr.inference", "--port", "0", *arguments]
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=err,
            cwd=folder,
            env={**inherited, **(environment or {})},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while (found := re.search(r"is served on (http://\S+)", errors.read_text())) is None:
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < deadline, errors.read_text()
            time.sleep(0.05)
        started = ServerProcess(process, found[1], output, errors)
        while True:
            try:
                httpx.get(f"{started.url}/v2/health/live", timeout=10)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, errors.read_text()
                time.sleep(0.05)
        yield started
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def save_steps(folder: Path, **metadata: str) -> Path:
    """The model of `models/steps.py`, saved below `folder`."""
    x = np.zeros((2, 2), np.float32)
    signature = infer_signature({"x": x}, {"y": x, "rows": np.zeros(2, np.int64)})
    path = folder / "steps"
    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(MODELS / "steps.py"),
        signature=signature,
        input_example={"x": x},
        metadata={f"semr.{name}": value for name, value in metadata.items()},
        pip_requirements=["mlflow"],
    )
    return path


def infer_body(*rows: tuple[float, float], datatype: str = "FP32", **more: object) -> dict[str, object]:
    """A request of rows for the model of `models/steps.py`."""
    data = [value for row in rows for value in row]
    return {"inputs": [{"name": "x", "shape": [len(rows), 2], "datatype": datatype, "data": data}], **more}
