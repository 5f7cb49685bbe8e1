"""A cluster as the tests see it: kubectl, helm, namespaces of their own, and questions that many of them ask."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from chart_tools import Helm, Object, values_of

WAIT_SECONDS = 90.0
#: Kinds that belong to a release, for "what is left?".
NAMESPACED_KINDS = (
    "configmaps,secrets,services,serviceaccounts,persistentvolumeclaims,pods,podtemplates,deployments.apps,statefulsets.apps,"
    "replicasets.apps,jobs.batch,horizontalpodautoscalers.autoscaling,poddisruptionbudgets.policy,ingresses.networking.k8s.io,"
    "networkpolicies.networking.k8s.io,roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io,"
    "httproutes.gateway.networking.k8s.io,grpcroutes.gateway.networking.k8s.io,servicemonitors.monitoring.coreos.com,"
    "podmonitors.monitoring.coreos.com,prometheusrules.monitoring.coreos.com,alertmanagerconfigs.monitoring.coreos.com,"
    "rayclusters.ray.io,rayservices.ray.io"
)
#: Secrets that profiles name, by key: what an administrator makes before the installation.
PREPARED_SECRETS = {
    "semr-credentials": (
        "SEMR_OBJECT_STORE_ACCESS_KEY",
        "SEMR_OBJECT_STORE_SECRET_KEY",
        "SEMR_RAY_AUTH_TOKEN",
        "SEMR_EVOLUTION_TOKEN",
    ),
    "semr-database": ("mlflow-password", "flyte-password"),
    "semr-database-ca": ("ca.crt",),
    "semr-s3": ("mlflow-access-key", "mlflow-secret-key", "flyte-access-key", "flyte-secret-key"),
    "semr-ray-token": ("auth_token",),
    "grafana-admin": ("admin-user", "admin-password"),
    "registry": (),
    "mlflow-auth": ("username", "password"),
}


#: Likewise, but of a name that the chart gives to one of its own in other profiles.
EXTERNAL_SECRETS = {"semr-redis": ("redis-password",)}
#: Names of PriorityClasses that profiles name.
PRIORITY_CLASSES = ("semr", "serving")


@dataclass
class Cluster:
    """An API server, reached with `kubeconfig`; simulated: its nodes run no container."""

    kubectl_program: str
    kubeconfig: Path
    helm: Helm
    simulated: bool

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl."""
        done = subprocess.run(
            [self.kubectl_program, f"--kubeconfig={self.kubeconfig}", *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0 or not check, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done

    def apply(self, *objects: Object, namespace: str = "") -> None:
        """Make or change objects."""
        where = [f"--namespace={namespace}"] if namespace else []
        self.kubectl("apply", *where, "-f", "-", text=yaml.safe_dump_all(objects))

    def all(self, kinds: str, namespace: str, selector: str = "") -> list[Object]:
        """Objects of these kinds."""
        chosen = [f"--selector={selector}"] if selector else []
        done = self.kubectl("get", kinds, f"--namespace={namespace}", "--output=json", *chosen)
        items: list[Object] = json.loads(done.stdout)["items"]
        return items

    def get(self, kind: str, name: str, namespace: str) -> Object | None:
        """One object, None if it is not there."""
        done = self.kubectl("get", kind, name, f"--namespace={namespace}", "--output=json", "--ignore-not-found")
        found: Object | None = json.loads(done.stdout) if done.stdout.strip() else None
        return found

    def can_all(
        self, account: str, namespace: str, questions: list[tuple[str, str, str]], where: str = ""
    ) -> list[bool]:
        """What `kubectl auth can-i VERB RESOURCE[/NAME]` says for a ServiceAccount, for many (verb, resource, name) at once.

        `where`: another namespace than that of the account.
        """
        reviews = []
        for verb, what, name in questions:
            resource, _, group = what.partition(".")
            resource, _, subresource = resource.partition("/")
            if "/" in group:
                group, _, subresource = group.partition("/")
            attributes = {"namespace": where or namespace, "verb": verb, "group": group, "resource": resource}
            attributes |= {"subresource": subresource, "name": name}
            user = f"system:serviceaccount:{namespace}:{account}"
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
            reviews.append(
                {
                    "apiVersion": "authorization.k8s.io/v1",
                    "kind": "SubjectAccessReview",
                    "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
                }
            )
        done = self.kubectl("create", "-f", "-", "--output=json", text=yaml.safe_dump_all(reviews))
        answers, rest = [], done.stdout.strip()
        while rest:
            answer, end = json.JSONDecoder().raw_decode(rest)
            answers += answer.get("items", [answer])
            rest = rest[end:].strip()
        return [bool(each["status"]["allowed"]) for each in answers]

    def install(self, chart: str, release: str, namespace: str, *arguments: str | Path, verb: str = "install") -> None:
        """`helm install` (or another verb); an error fails the test with helm's words."""
        done = self.helm_run(verb, release, self.helm.charts / chart, namespace=namespace, arguments=arguments)
        assert done.returncode == 0, done.stderr

    def helm_run(
        self, verb: str, *positional: str | Path, namespace: str, arguments: tuple[str | Path, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run helm in a namespace."""
        where = ["--kubeconfig", self.kubeconfig, "--namespace", namespace]
        return self.helm.run(verb, *positional, *where, *arguments)

    def token_kubeconfig(self, account: str, namespace: str, folder: Path) -> Path:
        """A kubeconfig with which a ServiceAccount's pod would call."""
        from certificates import kubeconfig

        token = self.kubectl("create", "token", account, f"--namespace={namespace}").stdout.strip()
        path = folder / f"{account}.kubeconfig"
        path.write_text(kubeconfig(self.server, self.authority, token))
        return path

    @property
    def server(self) -> str:
        """URL of the API server."""
        url: str = self._connection["server"]
        return url

    @property
    def authority(self) -> bytes:
        """Certificate of the API server's authority, PEM."""
        import base64

        return base64.b64decode(self._connection["certificate-authority-data"])

    @property
    def _connection(self) -> dict[str, Any]:
        done = self.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json")
        connection: dict[str, Any] = json.loads(done.stdout)["clusters"][0]["cluster"]
        return connection

    @contextmanager
    def namespace(self, prefix: str = "t", labels: dict[str, str] | None = None) -> Iterator[str]:
        """A namespace with the Secrets that profiles name; it is removed with all that is in it."""
        name = f"{prefix}-{uuid.uuid4().hex[:6]}"
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}})
        self.prepare(name, PREPARED_SECRETS)
        try:
            yield name
        finally:
            # First the releases, so that node ports are free again when this returns.
            for release in self.releases(name):
                self.helm_run("uninstall", release, namespace=name)
            self.kubectl("delete", "namespace", name, "--wait=false", check=False)

    def prepare(self, namespace: str, secrets: dict[str, tuple[str, ...]]) -> None:
        """Make Secrets with these keys."""
        objects = [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name},
                "stringData": {key: f"prepared-{key}" for key in keys},
            }
            for name, keys in secrets.items()
        ]
        self.apply(*objects, namespace=namespace)

    def releases(self, namespace: str) -> list[str]:
        """Names of the releases of a namespace, whatever state they are in."""
        return self.helm_run("list", "--short", "--all", namespace=namespace).stdout.split()

    def wait_for_ready(self, namespace: str, release: str) -> None:
        """Until every workload of the release has all its pods ready, its jobs are complete, and its claims bound."""
        self.wait(lambda: self.not_ready(namespace, release))

    def not_ready(self, namespace: str, release: str) -> list[str]:
        """What of a release is not ready yet, Ray's clusters included."""
        problems = []
        kinds = (
            "deployments.apps,statefulsets.apps,jobs.batch,persistentvolumeclaims,rayclusters.ray.io,rayservices.ray.io"
        )
        objects = self.all(kinds, namespace)
        clusters = [each for each in objects if each["kind"] == "RayCluster"]
        for each in objects:
            status, spec = each.get("status", {}), each["spec"]
            name = f"{each['kind']}/{each['metadata']['name']}"
            if each["kind"] in ("Deployment", "StatefulSet"):
                wanted = spec.get("replicas", 1)
                fresh = status.get("observedGeneration", 0) >= each["metadata"]["generation"]
                there = min(status.get("readyReplicas", 0), status.get("updatedReplicas", 0)) if wanted else 0
                extra = status.get("replicas", 0) - wanted
                if not fresh or there < wanted or extra:
                    problems.append(f"{name}: {there} of {wanted} pods ready and updated")
            elif each["kind"] == "Job" and not status.get("succeeded"):
                problems.append(f"{name} is not complete")
            elif each["kind"] == "PersistentVolumeClaim" and status.get("phase") != "Bound":
                problems.append(f"{name} is {status.get('phase')}")
            elif each["kind"] == "RayService" and not any(_owned(cluster, each) for cluster in clusters):
                problems.append(f"{name} has no cluster yet")
            elif each["kind"] == "RayCluster" and status.get("state") != "ready":
                problems.append(f"{name} is {status.get('state')!r}: {status.get('reason', '')}")
        if problems:
            events = self.all("events", namespace)
            said = {each.get("message", "") for each in events if each.get("type") == "Warning"}
            problems += [f"event: {text[:300]}" for text in sorted(said)]
        return problems

    def wait(self, problems: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
        """Until `problems` returns nothing."""
        deadline = time.monotonic() + seconds
        while found := problems():
            assert time.monotonic() < deadline, found
            time.sleep(0.3)

    def pod_hashes(self, namespace: str, release: str) -> dict[str, list[str]]:
        """By workload, the hashes of the pod templates of its running pods, with the pods' own names."""
        found: dict[str, list[str]] = {}
        for pod in self.all("pods", namespace, f"app.kubernetes.io/instance={release}"):
            labels = pod["metadata"]["labels"]
            if pod["metadata"].get("deletionTimestamp") or pod["status"].get("phase") == "Succeeded":
                continue
            part = labels.get("pod-template-hash") or labels.get("controller-revision-hash") or ""
            key = labels.get("app.kubernetes.io/component", "") + labels.get("semr.io/track", "")
            found.setdefault(key, []).append(f"{pod['metadata']['name']} {pod['metadata']['uid']} {part}")
        return {key: sorted(names) for key, names in found.items()}


def _owned(each: Object, owner: Object) -> bool:
    references = each["metadata"].get("ownerReferences", [])
    return owner["metadata"]["uid"] in [reference["uid"] for reference in references]


def profile_arguments(chart: str, profile: str | None) -> list[str | Path]:
    """`--values` of a profile, none for the defaults."""
    return [] if profile is None else ["--values", values_of(chart, profile)]


def priority_classes() -> list[Object]:
    """What profiles name and an administrator makes."""
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
    return [{**kind, "metadata": {"name": name}} for name in PRIORITY_CLASSES]


def existing_kubeconfig() -> Path | None:
    """The cluster that KUBECONFIG names, if it does."""
    given = os.environ.get("KUBECONFIG")
    return Path(given) if given else None
