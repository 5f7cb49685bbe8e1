"""Network policies, judged as a network plug-in would: who reaches whom at which port."""

from __future__ import annotations

from typing import Any

import pytest
from chart_tools import Helm, Rendered

SEMR = {"app.kubernetes.io/name": "semr", "app.kubernetes.io/instance": "semr", "app.kubernetes.io/part-of": "semr"}


def labels(component: str) -> dict[str, str]:
    other = {
        "flyte": {"app.kubernetes.io/instance": "semr", "app.kubernetes.io/component": "flyte-binary"},
        "prometheus": {"app.kubernetes.io/name": "prometheus"},
        "alertmanager": {"app.kubernetes.io/name": "alertmanager"},
        "operator": {"app.kubernetes.io/component": "kuberay-operator"},
        "grafana": {"app.kubernetes.io/instance": "semr", "app.kubernetes.io/name": "grafana"},
        "inference": {"app.kubernetes.io/name": "semr-inference", "app.kubernetes.io/instance": "inference-mnist"},
        "stranger": {"app": "stranger"},
    }
    return other.get(component) or {**SEMR, "app.kubernetes.io/component": component}


def reaches(rendered: Rendered, source: str, to: str, port: int) -> bool:
    """Both ends have to agree; an end that no policy selects agrees to everything."""
    return _agrees(rendered, "egress", labels(source), labels(to), port) and _agrees(
        rendered, "ingress", labels(to), labels(source), port
    )


def _agrees(rendered: Rendered, side: str, own: dict[str, str], peer: dict[str, str], port: int) -> bool:
    policies = [each for each in rendered.of("NetworkPolicy") if _selects(each["spec"]["podSelector"], own)]
    if not policies:
        return True
    rules = [rule for each in policies for rule in each["spec"].get(side) or []]
    end = "to" if side == "egress" else "from"
    return any(_rule_allows(rule, end, peer, port) for rule in rules)


def _rule_allows(rule: dict[str, Any], end: str, peer: dict[str, str], port: int) -> bool:
    ports = rule.get("ports")
    if ports and not any(each["port"] == port and each.get("protocol", "TCP") == "TCP" for each in ports):
        return False
    # An address is outside the cluster: it is no pod's.
    peers = [each for each in rule.get(end) or [] if "ipBlock" not in each]
    return end not in rule or any(_selects(each.get("podSelector", {}), peer) for each in peers)


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())


@pytest.mark.parametrize(
    ("source", "to", "port"),
    [
        ("postgresql-setup", "postgresql", 5432), ("mlflow", "postgresql", 5432), ("flyte", "postgresql", 5432),
        ("minio-setup", "minio", 9000), ("mlflow", "minio", 9000), ("flyte", "minio", 9000), ("ray-jobs", "minio", 9000),
        ("ray-serving", "minio", 9000), ("evolution", "minio", 9000), ("tasks", "minio", 9000),
        ("ray-jobs", "mlflow", 5000), ("ray-serving", "mlflow", 5000), ("evolution", "mlflow", 5000),
        ("tasks", "mlflow", 5000),
        ("ray-jobs", "ray-jobs", 6379), ("ray-serving", "ray-serving", 6379),
        ("tasks", "ray-jobs", 8265), ("tasks", "ray-serving", 8265), ("tasks", "ray-serving", 8000),
        ("evolution", "ray-jobs", 8265), ("evolution", "ray-serving", 8265),
        ("operator", "ray-jobs", 8265), ("operator", "ray-serving", 8265),
        ("alertmanager", "evolution", 8500), ("tasks", "evolution", 8500), ("evolution", "flyte", 8089),
        ("evolution", "prometheus", 9090), ("tasks", "prometheus", 9090),
        ("prometheus", "mlflow", 5000), ("prometheus", "minio", 9000), ("prometheus", "evolution", 8500),
        ("prometheus", "ray-jobs", 8080), ("prometheus", "ray-serving", 8080), ("prometheus", "flyte", 10254),
        ("tasks", "flyte", 8089),
        ("test", "mlflow", 5000), ("test", "evolution", 8500), ("test", "postgresql", 5432), ("test", "ray-jobs", 8265),
        ("test", "ray-serving", 8000), ("test", "flyte", 8088), ("test", "grafana", 3000), ("test", "alertmanager", 9093),
        ("tasks", "tasks", 6379), ("operator", "tasks", 8265),
        ("inference", "mlflow", 5000), ("inference", "minio", 9000), ("tasks", "inference", 8080),
    ],
)  # fmt: skip
def test_open(helm: Helm, source: str, to: str, port: int) -> None:
    assert reaches(helm.render("SEMR", None), source, to, port)


@pytest.mark.parametrize(
    ("source", "to", "port"),
    [
        ("ray-jobs", "postgresql", 5432), ("ray-serving", "postgresql", 5432), ("evolution", "postgresql", 5432),
        ("tasks", "postgresql", 5432), ("stranger", "postgresql", 5432), ("stranger", "minio", 9000),
        ("stranger", "mlflow", 5000), ("stranger", "ray-jobs", 8265), ("stranger", "ray-jobs", 6379),
        ("stranger", "evolution", 8500), ("ray-serving", "ray-jobs", 8265), ("tasks", "ray-jobs", 6379),
        ("mlflow", "evolution", 8500), ("minio", "mlflow", 5000), ("postgresql", "minio", 9000),
        ("alertmanager", "mlflow", 5000), ("prometheus", "postgresql", 5432), ("mlflow", "minio", 9001),
        ("evolution", "stranger", 80), ("ray-jobs", "stranger", 443 + 1),
        ("stranger", "flyte", 8088), ("stranger", "flyte", 8089), ("ray-jobs", "flyte", 8089), ("ray-serving", "flyte", 8089),
        ("stranger", "tasks", 8265),
    ],
)  # fmt: skip
def test_closed(helm: Helm, source: str, to: str, port: int) -> None:
    assert not reaches(helm.render("SEMR", None), source, to, port)


def test_redis_is_for_ray_alone(helm: Helm) -> None:
    rendered = helm.render("SEMR", "everything-on-values")
    assert reaches(rendered, "ray-jobs", "redis", 6379) and reaches(rendered, "ray-serving", "redis", 6379)
    assert not reaches(rendered, "tasks", "redis", 6379) and not reaches(rendered, "stranger", "redis", 6379)


def test_what_gateway_opens_is_open(helm: Helm) -> None:
    """By NodePort a browser's address comes in; what is not opened stays closed."""
    rendered = helm.render("SEMR", "values_example")
    for to, port in (("mlflow", 5000), ("ray-jobs", 8265), ("minio", 9001), ("minio", 9000)):
        assert reaches(rendered, "stranger", to, port), to
    for to, port in (("ray-serving", 8265), ("evolution", 8500), ("ray-jobs", 6379), ("postgresql", 5432)):
        assert not reaches(rendered, "stranger", to, port), to


def test_labels_of_other_namespaces_are_trusted_only_where_something_is_elsewhere(helm: Helm) -> None:
    """A pod of any namespace may have any label."""

    def anywhere(profile: str | None) -> set[str]:
        found = set()
        for policy in helm.render("SEMR", profile).of("NetworkPolicy"):
            for side, end in (("ingress", "from"), ("egress", "to")):
                for rule in policy["spec"].get(side) or []:
                    for peer in rule.get(end) or []:
                        if "namespaceSelector" in peer and "podSelector" in peer:
                            found |= set(peer["podSelector"]["matchLabels"].values())
        return found

    assert anywhere(None) == set()
    assert anywhere("external-services-values") == {"kuberay-operator", "prometheus", "alertmanager"}


def test_what_is_special_about_a_cluster_can_be_said(helm: Helm) -> None:
    sets = (
        "networkPolicy.apiServerPorts={7443}",
        "networkPolicy.dnsPorts={1053}",
        "networkPolicy.extraEgress[0].ports[0].port=5000",
    )
    for name, ports in (("semr-evolution", {7443, 1053, 5000}), ("semr-mlflow", {1053, 5000}), ("semr-minio", set())):
        policy = helm.render("SEMR", None, *sets).get("NetworkPolicy", name)["spec"]
        assert ports <= {port["port"] for rule in policy.get("egress", []) for port in rule.get("ports", [])}
    peers = ("gateway.controllerPeers[0].ipBlock.cidr=10.1.0.0/16",)
    rules = helm.render("SEMR", "everything-on-values", *peers).get("NetworkPolicy", "semr-mlflow")["spec"]["ingress"]
    assert [{"ipBlock": {"cidr": "10.1.0.0/16"}}] in [rule["from"] for rule in rules]


def test_external_services_can_be_reached(helm: Helm) -> None:
    rendered = helm.render("SEMR", "external-services-values")
    rules = rendered.get("NetworkPolicy", "semr-evolution")["spec"]["egress"]
    (outside,) = [rule for rule in rules if "ipBlock" in str(rule)]
    assert {each["port"] for each in outside["ports"]} >= {443, 6379, 6432, 9090}
