"""The chart semr-inference: versions, tracks, scaling, ways in."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from chart_tools import Helm, Object, Rendered, dig, parse, values_of
from cluster_stand_in import StandIn

MINIMAL = "minimal-values"


def container(rendered: Rendered, name: str = "inference-mnist") -> Object:
    found: Object = rendered.get("Deployment", name)["spec"]["template"]["spec"]["containers"][0]
    return found


def argument(rendered: Rendered, name: str = "inference-mnist") -> str:
    return next(each for each in container(rendered, name)["args"] if each.startswith("--model="))


def test_a_version_is_an_argument(helm: Helm) -> None:
    assert argument(helm.render("SEMR_inference", MINIMAL)) == "--model=models:/mnist/7"
    # As a number too: that is what --set makes of it.
    assert argument(helm.render("SEMR_inference", MINIMAL, "model.version=8")) == "--model=models:/mnist/8"


def test_an_alias_is_followed_if_asked(helm: Helm) -> None:
    rendered = helm.render("SEMR_inference", MINIMAL, "model.version=", "model.alias=champion")
    assert argument(rendered) == "--model=models:/mnist@champion" and "--follow" not in container(rendered)["args"]
    rendered = helm.render("SEMR_inference", "everything-on-values")
    assert "--follow" in container(rendered)["args"]
    assert "--follow" not in container(rendered, "inference-mnist-canary")["args"]


def test_another_version_changes_the_deployment_alone(helm: Helm) -> None:
    before, after = helm.render("SEMR_inference", MINIMAL), helm.render("SEMR_inference", MINIMAL, "model.version=8")
    changed = [a["kind"] for a, b in zip(before.objects, after.objects, strict=True) if a != b]
    assert changed == ["Deployment"]


def test_no_pod_goes_before_its_successor_answers(helm: Helm) -> None:
    for profile in (MINIMAL, "everything-on-values", "canary-replicas-values"):
        for each in helm.render("SEMR_inference", profile).of("Deployment"):
            assert each["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
            pod = each["spec"]["template"]["spec"]
            assert pod["terminationGracePeriodSeconds"] > 5 and pod["containers"][0]["lifecycle"]["preStop"]


def test_probes_ask_the_paths_of_the_protocol(helm: Helm) -> None:
    server = container(helm.render("SEMR_inference", MINIMAL))
    paths = {name: server[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {
        "startupProbe": "/v2/health/ready", "livenessProbe": "/v2/health/live", "readinessProbe": "/v2/health/ready"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("replicas", "weight", "pods"),
    [(1, 10, 1), (3, 25, 1), (9, 10, 1), (4, 50, 4), (10, 33, 5), (1, 90, 9), (0, 10, 1), (3, 0, 0)],
)
def test_canary_s_share_is_made_by_pods(helm: Helm, replicas: int, weight: int, pods: int) -> None:
    rendered = helm.render(
        "SEMR_inference", "canary-replicas-values", f"replicas={replicas}", f"canary.weight={weight}"
    )
    assert rendered.get("Deployment", "inference-mnist-canary")["spec"]["replicas"] == pods
    (service,) = rendered.of("Service")
    assert "semr.io/track" not in service["spec"]["selector"], "both tracks stand behind the one Service"


def test_canary_s_share_is_made_by_the_gateway(helm: Helm) -> None:
    rendered = helm.render("SEMR_inference", "everything-on-values")
    (rule,) = rendered.get("HTTPRoute", "inference-mnist")["spec"]["rules"]
    assert [(each["name"], each["weight"]) for each in rule["backendRefs"]] == [
        ("inference-mnist-stable", 80),
        ("inference-mnist-canary", 20),
    ]
    for track in ("stable", "canary"):
        assert rendered.get("Service", f"inference-mnist-{track}")["spec"]["selector"]["semr.io/track"] == track
    assert argument(rendered, "inference-mnist-canary") == "--model=models:/mnist/8"
    # Only the Service of both is scraped: else each pod would be there twice.
    scraped = [
        each["metadata"]["name"] for each in rendered.of("Service") if "semr.io/scrape" in each["metadata"]["labels"]
    ]
    assert scraped == ["inference-mnist"]


def test_without_a_canary_the_route_has_one_end(helm: Helm) -> None:
    rendered = helm.render("SEMR_inference", "everything-on-values", "canary.enabled=false")
    (rule,) = rendered.get("HTTPRoute", "inference-mnist")["spec"]["rules"]
    # The Service of the stable track, so that the route need not wait for it when a canary comes.
    assert rule["backendRefs"] == [{"name": "inference-mnist-stable", "port": 8080}]
    assert len(rendered.of("Deployment")) == 1 and len(rendered.of("Service")) == 2


def test_a_canary_that_does_not_answer_yet_gets_no_requests_of_a_gateway(
    helm: Helm, cluster: StandIn, tmp_path: Path
) -> None:
    """A Gateway sends its share of requests to a Service without pods, too, and fails them."""

    def weights() -> list[int]:
        arguments = [*cluster.arguments(tmp_path), "--values", values_of("SEMR_inference", "everything-on-values")]
        done = helm.template("SEMR_inference", *arguments, "--is-upgrade")
        assert done.returncode == 0, done.stderr
        (rule,) = parse(done.stdout).get("HTTPRoute", "inference-mnist")["spec"]["rules"]
        return [each["weight"] for each in rule["backendRefs"]]

    rendered = helm.render("SEMR_inference", "everything-on-values")
    # Where helm sees no cluster, as GitOps tools render, it is as the values say.
    assert weights() == [80, 20]
    cluster.add(rendered.get("Service", "inference-mnist"), "inference-mnist")
    assert weights() == [100, 0]
    canary = copy.deepcopy(rendered.get("Deployment", "inference-mnist-canary"))
    cluster.add(canary, "inference-mnist")
    assert weights() == [100, 0]
    cluster.add({**canary, "status": {"readyReplicas": 1}}, "inference-mnist")
    assert weights() == [80, 20]


def test_a_canary_without_weight_gets_nothing(helm: Helm) -> None:
    rendered = helm.render("SEMR_inference", "everything-on-values", "canary.weight=0")
    (rule,) = rendered.get("HTTPRoute", "inference-mnist")["spec"]["rules"]
    assert [each["weight"] for each in rule["backendRefs"]] == [100, 0]
    rendered = helm.render("SEMR_inference", "canary-replicas-values", "canary.weight=0")
    assert rendered.get("Deployment", "inference-mnist-canary")["spec"]["replicas"] == 0


def test_any_name_that_mlflow_takes_can_be_served(helm: Helm, tmp_path: Path) -> None:
    name = f"abc{'long name, ' * 8}größe *&"
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps({"model": {"name": name, "version": 1234567}}))
    done = helm.template("SEMR_inference", "--values", values, "--set=mlflow.url=http://mlflow:5000")
    assert done.returncode == 0, done.stderr
    rendered = parse(done.stdout)
    assert argument(rendered) == f"--model=models:/{name}/1234567"
    for each in rendered.objects:
        label = each["metadata"]["labels"]["semr.io/model"]
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", label), label


def test_a_rollout_has_the_time_that_loading_may_take(helm: Helm) -> None:
    def deadline(*sets: str) -> int:
        spec = helm.render("SEMR_inference", MINIMAL, *sets).get("Deployment", "inference-mnist")["spec"]
        return int(spec["progressDeadlineSeconds"])

    assert deadline() == 600
    assert deadline("startupProbe.failureThreshold=1000") == 3120


def test_the_port_of_mlflow_is_open_whatever_it_is(helm: Helm) -> None:
    def ports(url: str, *sets: str) -> set[int]:
        rendered = helm.render("SEMR_inference", MINIMAL, f"mlflow.url={url}", *sets)
        (rule,) = rendered.of("NetworkPolicy")[0]["spec"]["egress"]
        return {each["port"] for each in rule["ports"]}

    assert ports("http://mlflow.example.org") == {53, 80, 443, 5000, 9000}
    assert ports("http://mlflow.example.org:8080/path", "networkPolicy.egressPorts={443}") == {53, 443, 8080}
    assert ports("https://mlflow.example.org", "networkPolicy.egressPorts=null", "networkPolicy.dnsPorts={5353}") == {
        443, 5353
    }  # fmt: skip


def test_the_server_has_the_credentials_of_the_object_store_alone(helm: Helm) -> None:
    """Not those of Ray and of the evolution service, which stand in the same Secret."""
    server = container(helm.render("SEMR_inference", "everything-on-values"))
    assert not [each for each in server["envFrom"] if "secretRef" in each]
    keys = {each["valueFrom"]["secretKeyRef"]["key"] for each in server["env"] if "valueFrom" in each}
    assert keys == {"SEMR_OBJECT_STORE_ACCESS_KEY", "SEMR_OBJECT_STORE_SECRET_KEY", "username", "password"}


def test_the_autoscaler_owns_the_number_of_pods(helm: Helm) -> None:
    rendered = helm.render("SEMR_inference", "everything-on-values")
    assert "replicas" not in rendered.get("Deployment", "inference-mnist")["spec"]
    scaler = rendered.get("HorizontalPodAutoscaler", "inference-mnist")["spec"]
    assert {each["type"] for each in scaler["metrics"]} == {"Resource", "Pods"}
    assert rendered.get("PodDisruptionBudget", "inference-mnist")["spec"]["maxUnavailable"] == 1


def test_one_pod_has_no_budget_which_would_block_drains(helm: Helm) -> None:
    assert not helm.render("SEMR_inference", MINIMAL).of("PodDisruptionBudget")
    assert helm.render("SEMR_inference", MINIMAL, "replicas=2").of("PodDisruptionBudget")


def test_gpus_and_architecture(helm: Helm) -> None:
    rendered = helm.render("SEMR_inference", "everything-on-values")
    for each in rendered.pods:
        assert each.spec["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
        assert each.spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_a_node_port_is_open_to_all_and_else_only_clients_come_in(helm: Helm) -> None:
    def sources(profile: str) -> Any:
        return dig(helm.render("SEMR_inference", profile).of("NetworkPolicy")[0], "spec", "ingress", 0, "from")

    assert sources("canary-replicas-values") is None
    assert {"podSelector": {}} in sources(MINIMAL)


def test_mlflow_may_come_from_the_contract(helm: Helm) -> None:
    rendered = helm.render("SEMR_inference", MINIMAL, "mlflow.url=", "contract.configMap=semr-contract")
    server = container(rendered)
    assert server["envFrom"] == [{"configMapRef": {"name": "semr-contract"}}]
    assert "SEMR_MLFLOW_URI" not in {each["name"] for each in server["env"]}
