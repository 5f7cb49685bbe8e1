"""Prometheus and Alertmanager."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import httpx
import yaml

from semr.monitoring.time_compression import compress
from semr.package_data import package_data
from semr.stack.context import StackContext, find_program
from semr.stack.errors import ProgramMissingError
from semr.stack.ports import LOOPBACK, PortRequest
from semr.stack.services.base import Service, expect_ok
from semr.stack.services.object_store import ObjectStoreService
from semr.stack.services.ray_head import RayService
from semr.stack.state import write_private

_INSTALL = "run helper_scripts/env-prepare.sh, which installs Prometheus and Alertmanager"
_RETENTION = "15d"
# Of Ray's more than ten thousand samples: what SEMR defines, Serve, and the state of node, tasks and actors.
_RAY_KEPT = "|".join(
    (
        "ray_(semr|serve|cluster)_.*",
        "ray_node_(cpu|mem|gpus|disk|network)_.*",
        "ray_component_(cpu_percentage|rss_bytes)",
        "ray_tasks",
        "ray_actors",
    )
)


class AlertmanagerService(Service):
    """Alertmanager without peers; alerts about models go to the evolution service."""

    name: ClassVar[str] = "alertmanager"

    @classmethod
    def port_requests(cls) -> tuple[PortRequest, ...]:
        """One port for API and UI."""
        return (PortRequest("alertmanager", 9093),)

    @classmethod
    def check_installed(cls) -> None:
        """`alertmanager` is needed; Debian calls it `prometheus-alertmanager`."""
        if _alertmanager() is None:
            raise ProgramMissingError(f"Alertmanager's program `alertmanager` is not installed: {_INSTALL}.")

    @property
    def url(self) -> str:
        """API and UI."""
        return self.context.settings.need("alertmanager_url")

    @property
    def _config_file(self) -> Path:
        return self.context.folder.config / "alertmanager.yml"

    def prepare(self) -> None:
        """Write the configuration."""
        self.context.folder.data(self.name).mkdir(mode=0o700, parents=True, exist_ok=True)
        # Private: it holds the token of the evolution service.
        write_private(self._config_file, yaml.safe_dump(self._config(), sort_keys=False))

    def command(self) -> list[str]:
        """Loopback only; an empty cluster address turns gossip off."""
        return [
            _alertmanager() or "alertmanager",
            f"--config.file={self._config_file}",
            f"--storage.path={self.context.folder.data(self.name)}",
            f"--web.listen-address={LOOPBACK}:{self.port('alertmanager')}",
            "--cluster.listen-address=",
        ]

    async def check(self, client: httpx.AsyncClient) -> None:
        """Its readiness endpoint answers."""
        await expect_ok(client, f"{self.url}/-/ready", "waiting for readiness")

    def _config(self) -> dict[str, Any]:
        settings = self.context.settings
        credentials = {"type": "Bearer", "credentials": settings.need("evolution_token")}
        webhook = {
            "url": f"{settings.need('evolution_url')}/api/v1/alerts",
            "send_resolved": True,
            "http_config": {"authorization": credentials},
        }
        # The service tells repeated alerts apart by itself; a short repetition makes up for a message that it missed.
        evolution = {
            "matchers": ['semr="evolution"'],
            "receiver": "evolution",
            "group_by": ["alertname", "model"],
            "group_wait": "1s",
            "group_interval": "10s",
            "repeat_interval": f"{max(10.0, 60 / (self.context.options.time_compression or 1)):g}s",
        }
        return {
            "route": {"receiver": "none", "routes": [evolution]},
            "receivers": [{"name": "none"}, {"name": "evolution", "webhook_configs": [webhook]}],
        }


class PrometheusService(Service):
    """Prometheus, which scrapes all services of the stack."""

    name: ClassVar[str] = "prometheus"

    def __init__(self, context: StackContext, object_store: ObjectStoreService, ray: RayService) -> None:
        super().__init__(context)
        self._object_store = object_store
        self._ray = ray

    @classmethod
    def port_requests(cls) -> tuple[PortRequest, ...]:
        """One port for API and UI."""
        return (PortRequest("prometheus", 9090),)

    @classmethod
    def check_installed(cls) -> None:
        """`prometheus` is needed."""
        if find_program("prometheus") is None:
            raise ProgramMissingError(f"Prometheus' program `prometheus` is not installed: {_INSTALL}.")

    @property
    def url(self) -> str:
        """API and UI."""
        return self.context.settings.need("prometheus_url")

    @property
    def _config_file(self) -> Path:
        return self.context.folder.config / "prometheus.yml"

    def prepare(self) -> None:
        """Write the configuration."""
        self.context.folder.data(self.name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._config_file.write_text(yaml.safe_dump(self._config(), sort_keys=False), encoding="utf-8")
        self._write_rules()

    def command(self) -> list[str]:
        """Loopback only."""
        return [
            find_program("prometheus") or "prometheus",
            f"--config.file={self._config_file}",
            f"--storage.tsdb.path={self.context.folder.data(self.name)}",
            f"--storage.tsdb.retention.time={_RETENTION}",
            f"--web.listen-address={LOOPBACK}:{self.port('prometheus')}",
        ]

    async def check(self, client: httpx.AsyncClient) -> None:
        """Its readiness endpoint answers."""
        await expect_ok(client, f"{self.url}/-/ready", "waiting for readiness")

    def _config(self) -> dict[str, Any]:
        alertmanager = _target(self.port("alertmanager"))
        interval = f"{self.context.options.scrape_seconds:g}s"
        config: dict[str, Any] = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(self._rules_folder / "*.yaml")],
            "alerting": {"alertmanagers": [{"static_configs": [alertmanager]}]},
            "scrape_configs": [
                {
                    "job_name": "ray",
                    "file_sd_configs": [{"files": [str(self._ray.service_discovery_file)], "refresh_interval": "5s"}],
                    "metric_relabel_configs": [
                        {"source_labels": ["__name__"], "regex": _RAY_KEPT, "action": "keep"},
                        # Ray prefixes what SEMR defines; without the prefix rules are the same wherever a model is served.
                        {
                            "source_labels": ["__name__"],
                            "regex": "ray_(semr_.*)",
                            "target_label": "__name__",
                            "replacement": "$1",
                        },
                    ],
                },
                {"job_name": "mlflow", "static_configs": [_target(self.port("mlflow"))]},
                {
                    "job_name": "object-store",
                    "metrics_path": self._object_store.metrics_path,
                    "static_configs": [{"targets": [self._object_store.metrics_target]}],
                },
                {"job_name": "prometheus", "static_configs": [_target(self.port("prometheus"))]},
                {"job_name": "alertmanager", "static_configs": [alertmanager]},
                {"job_name": "evolution", "static_configs": [_target(self.port("evolution"))]},
            ],
        }
        return config

    @property
    def _compression(self) -> float:
        return self.context.options.time_compression or 1.0

    @property
    def _rules_folder(self) -> Path:
        return self.context.folder.config / "rules"

    def _write_rules(self) -> None:
        """The chart's rules, as they are or with their durations divided."""
        shutil.rmtree(self._rules_folder, ignore_errors=True)
        self._rules_folder.mkdir()
        for file in sorted(package_data("rules", "helm_charts/SEMR/rules").glob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            compressed = text if self._compression == 1.0 else compress(text, self._compression)
            (self._rules_folder / file.name).write_text(compressed, encoding="utf-8")


def _target(port: int) -> dict[str, list[str]]:
    return {"targets": [f"{LOOPBACK}:{port}"]}


def _alertmanager() -> str | None:
    return find_program("prometheus-alertmanager", "alertmanager")
