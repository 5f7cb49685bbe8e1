"""A stand-in for a cluster: an HTTP server that answers helm's `lookup` from a table. tests/cluster has a real one."""

from __future__ import annotations

import copy
import json
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from chart_tools import Object

_KINDS = {
    "v1": ("ConfigMap", "PersistentVolumeClaim", "Pod", "PodTemplate", "Secret", "Service", "ServiceAccount"),
    "apps/v1": ("Deployment", "StatefulSet"),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "batch/v1": ("Job",),
    "policy/v1": ("PodDisruptionBudget",),
    "rbac.authorization.k8s.io/v1": ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
    "networking.k8s.io/v1": ("Ingress", "NetworkPolicy"),
    "gateway.networking.k8s.io/v1": ("GRPCRoute", "HTTPRoute"),
    "monitoring.coreos.com/v1": ("PodMonitor", "PrometheusRule", "ServiceMonitor"),
    "monitoring.coreos.com/v1alpha1": ("AlertmanagerConfig",),
    "ray.io/v1": ("RayCluster", "RayService"),
}
_CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding")


class StandIn:
    """What a Kubernetes API answers about a few kinds of objects."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = cluster.answer(self.path.split("?")[0])
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, each: Object, release: str = "semr") -> None:
        """Have an object that a release of Helm has made."""
        group = each["apiVersion"].rpartition("/")[0]
        place = f"/apis/{each['apiVersion']}" if group else f"/api/{each['apiVersion']}"
        where = "" if each["kind"] in _CLUSTER_WIDE else "/namespaces/ml"
        name = f"{place}{where}/{each['kind'].lower()}s/{each['metadata']['name']}"
        stored = copy.deepcopy(each)
        # Helm marks what is its own.
        owner = {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": "ml"}
        stored["metadata"].setdefault("annotations", {}).update(owner)
        self.objects[name] = stored

    def answer(self, path: str) -> tuple[int, Object]:
        found = self.objects.get(path) or _discovery().get(path)
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        return (200, found) if found is not None else (404, missing)

    def arguments(self, folder: Path) -> list[str | Path]:
        """With which `helm template` looks up what is here."""
        return ["--kubeconfig", self._kubeconfig(folder), "--dry-run=server", "--disable-openapi-validation"]

    def _kubeconfig(self, folder: Path) -> Path:
        path = folder / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(content))
        return path


@lru_cache(maxsize=1)
def _discovery() -> dict[str, Object]:
    """What clients ask for first, by path: which kinds there are."""
    answers: dict[str, Object] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
    }
    groups: dict[str, Object] = {}
    for api_version, kinds in _KINDS.items():
        group, _, version = api_version.rpartition("/")
        plurals = {kind: kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s") for kind in kinds}
        plurals["Ingress"] = "ingresses"
        resources = [
            {
                "name": plurals[kind],
                "singularName": "",
                "namespaced": kind not in _CLUSTER_WIDE,
                "kind": kind,
                "verbs": ["get", "list"],
            }
            for kind in kinds
        ]
        body = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": resources}
        answers[f"/apis/{api_version}" if group else f"/api/{api_version}"] = body
        if group:
            both = {"groupVersion": api_version, "version": version}
            known = groups.setdefault(group, {"name": group, "versions": [], "preferredVersion": both})
            known["versions"].append(both)
    answers["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": list(groups.values())}
    return answers
