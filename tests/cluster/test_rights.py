"""What the charts' ServiceAccounts may do, asked of the API server's own authorizer, both ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster_tools import Cluster

#: Deployments by the helm target change these in their namespace.
HELM_KINDS = (
    "secrets", "configmaps", "services", "serviceaccounts", "deployments.apps", "horizontalpodautoscalers.autoscaling",
    "poddisruptionbudgets.policy", "networkpolicies.networking.k8s.io", "ingresses.networking.k8s.io",
    "httproutes.gateway.networking.k8s.io", "servicemonitors.monitoring.coreos.com", "prometheusrules.monitoring.coreos.com",
)  # fmt: skip
#: (verb, resource, name) that nobody may.
NOBODY = (
    ("delete", "rayservices.ray.io", "semr-serving"),
    ("list", "rayservices.ray.io", ""),
    ("patch", "rayservices.ray.io", "other"),
    ("delete", "rayclusters.ray.io", "semr-ray"),
    ("create", "rayjobs.ray.io", ""),
    ("create", "pods", ""),
    ("delete", "pods", ""),
    ("create", "pods/exec", ""),
    ("get", "nodes", ""),
    ("list", "namespaces", ""),
    ("create", "roles.rbac.authorization.k8s.io", ""),
    ("create", "rolebindings.rbac.authorization.k8s.io", ""),
    ("create", "serviceaccounts/token", ""),
    ("delete", "persistentvolumeclaims", ""),
    ("create", "clusterroles.rbac.authorization.k8s.io", ""),
    ("patch", "customresourcedefinitions.apiextensions.k8s.io", ""),
)
WITHOUT_RIGHTS = ("semr-ray", "semr-mlflow", "semr-minio", "semr-postgresql", "semr-test", "default")


@pytest.fixture(scope="module", params=["ray_serve", "helm"])
def release(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[tuple[str, str]]:
    """(namespace, deployment target)."""
    with cluster.namespace("rights") as name:
        cluster.install("SEMR", "semr", name, f"--set=contract.deploymentTarget={request.param}")
        yield name, request.param


@pytest.mark.parametrize("account", ["semr-evolution", "semr-tasks"])
def test_deployers_may_do_what_they_must_and_no_more(cluster: Cluster, release: tuple[str, str], account: str) -> None:
    namespace, target = release
    allowed = [("get", "rayservices.ray.io", "semr-serving"), ("patch", "rayservices.ray.io", "semr-serving")]
    helm = [
        (verb, kind, "")
        for kind in HELM_KINDS
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete")
    ] + [("list", "pods", ""), ("watch", "replicasets.apps", "")]
    _check(cluster, account, namespace, allowed + (helm if target == "helm" else []), True)
    _check(cluster, account, namespace, [*NOBODY, *([] if target == "helm" else helm)], False)
    # Nothing in other namespaces.
    assert not any(cluster.can_all(account, namespace, [*allowed, *helm], where="default"))


def test_the_autoscaler_may_change_its_one_cluster(cluster: Cluster, release: tuple[str, str]) -> None:
    namespace, _ = release
    allowed = [(verb, "pods", "") for verb in ("get", "list", "watch", "patch")]
    allowed += [("get", "rayclusters.ray.io", "semr-ray"), ("patch", "rayclusters.ray.io", "semr-ray")]
    _check(cluster, "semr-ray-autoscaler", namespace, allowed, True)
    forbidden = [*NOBODY, ("patch", "rayclusters.ray.io", "other"), ("get", "secrets", ""), ("patch", "services", "")]
    _check(cluster, "semr-ray-autoscaler", namespace, forbidden, False)


def test_the_setup_of_serving_may_change_its_one_service(cluster: Cluster, release: tuple[str, str]) -> None:
    namespace, _ = release
    allowed = [("get", "rayservices.ray.io", "semr-serving"), ("patch", "rayservices.ray.io", "semr-serving")]
    _check(cluster, "semr-serving-setup", namespace, allowed, True)
    _check(cluster, "semr-serving-setup", namespace, [*NOBODY, ("get", "secrets", "")], False)


@pytest.mark.parametrize("account", WITHOUT_RIGHTS)
def test_others_may_nothing(cluster: Cluster, release: tuple[str, str], account: str) -> None:
    namespace, _ = release
    wanted = [(verb, kind, "") for kind in (*HELM_KINDS, "pods", "rayclusters.ray.io") for verb in ("get", "patch")]
    _check(cluster, account, namespace, [*NOBODY, *wanted], False)


def _check(
    cluster: Cluster, account: str, namespace: str, questions: list[tuple[str, str, str]], expected: bool
) -> None:
    answers = cluster.can_all(account, namespace, questions)
    wrong = [question for question, answer in zip(questions, answers, strict=True) if answer is not expected]
    assert not wrong, f"{account} {'may not' if expected else 'may'}: {wrong}"
