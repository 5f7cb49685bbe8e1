"""The Ray head node: dashboard, Jobs API, Serve, metrics; and the Serve applications that outlive it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import httpx

from semr.stack.ports import LOOPBACK, PortRequest
from semr.stack.services.base import NotReadyError, Service, expect_ok
from semr.stack.state import read_json, write_private

DEFAULT_OBJECT_STORE_MB = 400
# Two training workers with their controller, a Serve replica and a task that reads data at the same time.
_LEAST_CPUS = 4
# Ray answers this request after it has started Serve's controller, a process of several seconds.
_START_SERVE_TIMEOUT_S = 90.0
# Applications that were put back are waited for, but one that cannot be deployed must not keep the stack from starting.
_DEPLOY_TIMEOUT_S = 60.0
_DEPLOYING = ("NOT_STARTED", "DEPLOYING")


class RayService(Service):
    """`ray start --head` with every address on loopback and token authentication."""

    name: ClassVar[str] = "ray"

    @classmethod
    def port_requests(cls) -> tuple[PortRequest, ...]:
        """All ports of the head's daemons; workers take ports that the kernel gives them."""
        internal = (
            "gcs",
            "object-manager",
            "node-manager",
            "client",
            "agent",
            "agent-grpc",
            "runtime-env-agent",
            "metrics",
            "autoscaler-metrics",
            "dashboard-metrics",
        )
        return (
            PortRequest("ray-dashboard", 8265),
            PortRequest("ray-serve", 8000),
            *(PortRequest(f"ray-{part}") for part in internal),
        )

    @property
    def url(self) -> str:
        """Dashboard and Jobs API."""
        return self.context.settings.need("ray_dashboard_url")

    @property
    def serve_url(self) -> str:
        """Ray Serve's HTTP proxy."""
        return self.context.settings.need("serve_url")

    @property
    def temporary_folder(self) -> Path:
        """Sessions, logs and sockets of Ray."""
        return self.context.runtime / "ray"

    @property
    def service_discovery_file(self) -> Path:
        """Where Ray lists its metrics endpoints for Prometheus."""
        return self.temporary_folder / "prom_metrics_service_discovery.json"

    @property
    def owned_ports(self) -> set[int]:
        """Dashboard and Serve."""
        return {self.port("ray-dashboard"), self.port("ray-serve")}

    @property
    def note(self) -> str:
        """Serve's address, since the service's URL is the dashboard's."""
        return f"Serve at {self.serve_url}"

    def prepare(self) -> None:
        """Drop the last session, which only its processes could use; Serve is started anew."""
        shutil.rmtree(self.temporary_folder, ignore_errors=True)
        self.temporary_folder.mkdir(mode=0o700, parents=True)
        self._serve_started = self._serve_answered = False
        self._deployed_by = 0.0

    def command(self) -> list[str]:
        """The public command line; the token is in the environment."""
        options = self.context.options
        object_store_mb = options.ray_object_store_mb or DEFAULT_OBJECT_STORE_MB
        flags = {
            "node-ip-address": LOOPBACK,
            "port": self.port("ray-gcs"),
            "object-manager-port": self.port("ray-object-manager"),
            "node-manager-port": self.port("ray-node-manager"),
            "ray-client-server-port": self.port("ray-client"),
            "dashboard-host": LOOPBACK,
            "dashboard-port": self.port("ray-dashboard"),
            "dashboard-agent-listen-port": self.port("ray-agent"),
            "dashboard-agent-grpc-port": self.port("ray-agent-grpc"),
            "runtime-env-agent-port": self.port("ray-runtime-env-agent"),
            "metrics-export-port": self.port("ray-metrics"),
            "num-cpus": options.ray_cpus or max(_LEAST_CPUS, os.cpu_count() or 1),
            "object-store-memory": object_store_mb * 1_000_000,
            "temp-dir": self.temporary_folder,
        }
        return [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            "--log-color=false",
            *(f"--{flag}={value}" for flag, value in flags.items()),
        ]

    def environment(self) -> dict[str, str]:
        """The contract, which jobs and Serve replicas inherit, and Ray's settings."""
        settings = self.context.settings
        return {
            **settings.contract(),
            **settings.client_environment(),
            # Without this Ray replaces 127.0.0.1 by the address of a network interface and listens there.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # The whole node goes: there is nowhere to drain to, and by default Ray would wait 30 s for it.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_metrics_report_interval_ms": str(round(self.context.options.scrape_seconds * 1000)),
            "AUTOSCALER_METRIC_PORT": str(self.port("ray-autoscaler-metrics")),
            "DASHBOARD_METRIC_PORT": str(self.port("ray-dashboard-metrics")),
            # The newer Parquet reader starts 32 actors for each epoch, which takes half a minute on two cores.
            "RAY_DATA_USE_DATASOURCE_V2": "0",
            # Else every job begins with an idle worker for each CPU, seconds of work that its own workers would need.
            "RAY_prestart_worker_first_driver": "0",
            # By default every worker is nice, Serve's replicas too; here jobs are (semr.job_entry) and serving comes first.
            "RAY_worker_niceness": "0",
            # Serve hops from thread to thread for handlers that would hold its loop; ours are asynchronous and hold nothing.
            "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
            "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
            "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": str(round(self.context.options.scrape_seconds * 500)),
            "RAY_PROMETHEUS_HOST": settings.need("prometheus_url"),
        }

    async def check(self, client: httpx.AsyncClient) -> None:
        """Dashboard, its agent (without which jobs cannot be submitted) and Serve's proxy answer."""
        await expect_ok(client, f"{self.url}/api/version", "waiting for the dashboard", self._authorization())
        if not self._serve_started:
            await self._start_serve(client)
            self._serve_started = True
        agent = f"http://{LOOPBACK}:{self.port('ray-agent')}"
        await expect_ok(client, f"{agent}/api/local_raylet_healthz", "waiting for the agent", self._authorization())
        try:
            # With no application the proxy answers 503, and that is all one can ask of it.
            await client.get(f"{self.serve_url}/-/healthz")
        except httpx.ConnectError as error:
            if self._serve_answered:  # somebody shut Serve down
                self._serve_started = self._serve_answered = False
            raise NotReadyError("waiting for Serve's proxy") from error
        if not self._serve_answered:
            await self._wait_for_applications(client)
            self._serve_answered = True

    async def tend(self, client: httpx.AsyncClient) -> None:
        """Save the applications that Serve has, so that a restart of Ray can put them back."""
        details = await self._serve_details(client)
        if not details.get("controller_info"):  # Serve is not running: this says nothing about its applications
            return
        applications = _deployed_configs(details)
        if applications != self.saved_applications():
            write_private(self.context.folder.serve_file, json.dumps({"applications": applications}, indent=2))

    async def _start_serve(self, client: httpx.AsyncClient) -> None:
        """Start Serve with the saved applications; those that a client has deployed meanwhile are left as they are."""
        details = await self._serve_details(client)
        if details.get("applications"):
            return
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": LOOPBACK, "port": self.port("ray-serve")},
            "applications": self.saved_applications(),
        }
        response = await client.put(
            f"{self.url}/api/serve/applications/",
            json=config,
            headers=self._authorization(),
            timeout=_START_SERVE_TIMEOUT_S,
        )
        if response.is_client_error and config["applications"]:
            # Saved by another version of Ray, perhaps: keep the file for its owner and start without.
            self.context.folder.serve_file.replace(self.context.folder.serve_file.with_suffix(".rejected"))
        if not response.is_success:
            raise NotReadyError(f"starting Serve (HTTP {response.status_code}: {response.text[:200]})")
        self._deployed_by = time.monotonic() + _DEPLOY_TIMEOUT_S

    async def _wait_for_applications(self, client: httpx.AsyncClient) -> None:
        if time.monotonic() >= self._deployed_by:
            return
        applications: dict[str, dict[str, Any]] = (await self._serve_details(client)).get("applications") or {}
        pending = sorted(name for name, details in applications.items() if details.get("status") in _DEPLOYING)
        if pending:
            raise NotReadyError(f"waiting for the Serve applications {', '.join(pending)}")

    async def _serve_details(self, client: httpx.AsyncClient) -> dict[str, Any]:
        response = await client.get(
            f"{self.url}/api/serve/applications/", headers=self._authorization(), timeout=_START_SERVE_TIMEOUT_S
        )
        if not response.is_success:
            raise NotReadyError(f"waiting for Serve's API (HTTP {response.status_code})")
        details = response.json()
        return details if isinstance(details, dict) else {}

    def saved_applications(self) -> list[dict[str, Any]]:
        """Application configurations of the last time; none when the file is missing or broken."""
        saved = (read_json(self.context.folder.serve_file) or {}).get("applications", [])
        return saved if isinstance(saved, list) else []

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.context.settings.need('ray_auth_token')}"}


def _deployed_configs(details: dict[str, Any]) -> list[dict[str, Any]]:
    """Configurations that were PUT, by name; an application deployed from Python code has none and cannot be put back."""
    applications: dict[str, dict[str, Any]] = details.get("applications") or {}
    wanted = [applications[name] for name in sorted(applications) if applications[name].get("status") != "DELETING"]
    return [application["deployed_app_config"] for application in wanted if application.get("deployed_app_config")]
