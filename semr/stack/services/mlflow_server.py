"""MLflow's tracking server and model registry; artifacts go through it into the object store."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import ClassVar

import httpx

from semr.stack.ports import LOOPBACK, PortRequest
from semr.stack.services.base import Service, expect_ok


class MlflowService(Service):
    """`mlflow server` with one worker: each worker costs 250 MB and seconds of start."""

    name: ClassVar[str] = "mlflow"

    @classmethod
    def port_requests(cls) -> tuple[PortRequest, ...]:
        """One port for API, UI and metrics."""
        return (PortRequest("mlflow", 5000),)

    @property
    def url(self) -> str:
        """Tracking URI."""
        return self.context.settings.need("mlflow_uri")

    @property
    def _metrics_folder(self) -> Path:
        return self.context.runtime / "mlflow-metrics"

    def prepare(self) -> None:
        """Make the data folder; drop the counters of processes that are no more."""
        self.context.folder.data(self.name).mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._metrics_folder, ignore_errors=True)
        self._metrics_folder.mkdir(parents=True)

    def command(self) -> list[str]:
        """The public command line; the database's URI is in the environment, since it may hold a password."""
        return [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--workers",
            "1",
            "--host",
            LOOPBACK,
            "--port",
            str(self.port("mlflow")),
            "--serve-artifacts",
            "--artifacts-destination",
            f"s3://{self.context.settings.artifacts_bucket}",
            "--expose-prometheus",
            str(self._metrics_folder),
            "--uvicorn-opts",
            "--no-access-log",
        ]

    def environment(self) -> dict[str, str]:
        """Database, object store, and no background jobs, which would double the start time."""
        settings = self.context.settings
        database = self.context.folder.data(self.name) / "mlflow.db"
        client = settings.client_environment()
        return {
            **{name: value for name, value in client.items() if name.startswith("AWS_")},
            "MLFLOW_S3_ENDPOINT_URL": settings.need("object_store_endpoint"),
            "MLFLOW_BACKEND_STORE_URI": self.context.options.mlflow_backend_uri or f"sqlite:///{database}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    async def check(self, client: httpx.AsyncClient) -> None:
        """Its health endpoint answers, which it does once the database is migrated."""
        await expect_ok(client, f"{self.url}/health", "waiting for the tracking server")
