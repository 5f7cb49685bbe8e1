"""Prometheus and Alertmanager, as kube-prometheus-stack with the chart's values would ask the operator for them.

Their pods are simulated as all pods are. What the operator writes for them is real, and is given to servers on this machine.
"""

from __future__ import annotations

import base64
import gzip
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from bed import Bed
from build_programs import Programs, prometheus_version
from chart_tools import Object
from cluster_tools import Cluster
from local_servers import free_ports

NAME = "semr-monitoring"
#: The command on this machine; empty when there is none.
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager") or ""
_GROUP = "monitoring.coreos.com/v1"


def start_operator(bed: Bed) -> None:
    """The Prometheus operator, as a process."""
    (port,) = free_ports(1)
    environment = {"KUBECONFIG": str(bed.kubeconfig)}
    bed.start("prometheus-operator", f"--web.listen-address=127.0.0.1:{port}", env=environment)


def order_servers(cluster: Cluster, namespace: str, values: Object) -> None:
    """Make the operator's resources for a Prometheus and an Alertmanager that look at this namespace only.

    Args:
        cluster: The cluster.
        namespace: The namespace.
        values: What the chart gives to kube-prometheus-stack.
    """
    given = values["prometheus"]["prometheusSpec"]
    selectors = {}
    for kind in ("serviceMonitor", "podMonitor", "rule", "probe"):
        # False is what makes an empty selector, one that takes everything, of none.
        assert given[f"{kind}SelectorNilUsesHelmValues"] is False
        selectors[f"{kind}Selector"] = {}
        selectors[f"{kind}NamespaceSelector"] = _only(namespace)
    alertmanager = {
        "alertmanagerConfigSelector": {},
        "alertmanagerConfigNamespaceSelector": _only(namespace),
        "alertmanagerConfigMatcherStrategy": values["alertmanager"]["alertmanagerSpec"][
            "alertmanagerConfigMatcherStrategy"
        ],
    }
    cluster.apply(
        {
            "apiVersion": _GROUP,
            "kind": "Prometheus",
            "metadata": {"name": NAME},
            "spec": {"version": prometheus_version(), "serviceAccountName": "default", **selectors},
        },
        {
            "apiVersion": _GROUP,
            "kind": "Alertmanager",
            "metadata": {"name": NAME},
            "spec": {"version": _alertmanager_version(), **alertmanager},
        },
        namespace=namespace,
    )


def prometheus_config(cluster: Cluster, namespace: str) -> Object:
    """What the operator wrote for Prometheus."""
    return _written(cluster, namespace, f"prometheus-{NAME}", "prometheus.yaml.gz")


def alertmanager_config(cluster: Cluster, namespace: str) -> Object:
    """What the operator wrote for Alertmanager."""
    return _written(cluster, namespace, f"alertmanager-{NAME}-generated", "alertmanager.yaml.gz")


def rule_files(cluster: Cluster, namespace: str) -> dict[str, str]:
    """Rules as the operator hands them over, by file name."""
    found = cluster.get("configmap", f"prometheus-{NAME}-rulefiles-0", namespace) or {}
    files: dict[str, str] = found.get("data") or {}
    return files


@contextmanager
def running_prometheus(cluster: Cluster, namespace: str, programs: Programs, folder: Path) -> Iterator[str]:
    """URL of a Prometheus with the operator's configuration, which asks this cluster for its targets."""
    config = prometheus_config(cluster, namespace)
    for job in config["scrape_configs"]:
        for discovery in job["kubernetes_sd_configs"]:
            discovery["kubeconfig_file"] = str(cluster.kubeconfig)
    rules = folder / "rules"
    rules.mkdir()
    for name, text in rule_files(cluster, namespace).items():
        (rules / name).write_text(text)
    config |= {"rule_files": [str(rules / "*.yaml")], "alerting": {}}
    path = folder / "prometheus.yaml"
    # As a container beside Prometheus fills it in.
    path.write_text(yaml.safe_dump(config).replace("$(SHARD)", "0").replace("$(POD_NAME)", "prometheus-0"))
    with _server(str(programs.program("prometheus")), path, folder, "--storage.tsdb.path") as url:
        yield url


@contextmanager
def running_alertmanager(cluster: Cluster, namespace: str, folder: Path, replace: dict[str, str]) -> Iterator[str]:
    """URL of an Alertmanager with the operator's configuration, in which some texts are replaced."""
    text = yaml.safe_dump(alertmanager_config(cluster, namespace))
    for old, new in replace.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "alertmanager.yaml"
    path.write_text(text)
    with _server(ALERTMANAGER, path, folder, "--storage.path", "--cluster.listen-address=") as url:
        yield url


@dataclass(frozen=True)
class Letter:
    """A request that came in."""

    path: str
    authorization: str
    body: bytes


@contextmanager
def mailbox() -> Iterator[tuple[str, list[Letter]]]:
    """A server that takes everything: its address, and what it has got until now."""
    got: list[Letter] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            got.append(Letter(self.path, self.headers.get("Authorization", ""), body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _server(program: str, config: Path, folder: Path, storage: str, *more: str) -> Iterator[str]:
    (port,) = free_ports(1)
    arguments = [
        f"--config.file={config}",
        f"{storage}={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        *more,
    ]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, *arguments], stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/-/ready", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        else:
            pytest.fail(f"{program} is not ready: {log.read_text()[-3000:]}")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _written(cluster: Cluster, namespace: str, secret: str, key: str) -> Object:
    found = cluster.get("secret", secret, namespace)
    if found is None:
        return {}
    config: Object = yaml.safe_load(gzip.decompress(base64.b64decode(found["data"][key])))
    return config


def _only(namespace: str) -> Object:
    return {"matchLabels": {"kubernetes.io/metadata.name": namespace}}


def _alertmanager_version() -> str:
    """Of the command on this machine, as v1.2.3."""
    done = subprocess.run([ALERTMANAGER, "--version"], capture_output=True, text=True, timeout=30, check=True)
    first = (done.stdout + done.stderr).split("version ", 1)[1].split()[0]
    return f"v{first.split('+')[0]}"
