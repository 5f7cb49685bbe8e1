"""The wiring to the charts of others, rendered together with the real ones.

Skipped where they are not: `helper_scripts/chart-deps.sh` fetches them into helm_charts/SEMR/charts, and the variable
SEMR_TEST_CHART_DEPENDENCIES names another folder that has them. All other tests of this folder work on stand-ins.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from chart_tools import CASES, KUBE_VERSION, Helm, Object, Rendered, copy_with_dependencies, dig, own, values_of
from cluster_stand_in import StandIn

PROFILES = [profile for chart, profile in CASES if chart == "SEMR"]
#: Needs the host's network, processes and files: the chart's README says so.
UNRESTRICTED = {"DaemonSet/semr-prometheus-node-exporter"}
#: The KubeRay operator looks after the whole cluster, so that there is one of it: these are the same in every release.
KUBERAY_ALONE = re.compile(r"kuberay-operator|ray(job|service|cronjob)-(editor|viewer)-role")


@pytest.fixture(scope="module")
def helm(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm over a copy of the chart with its real dependencies."""
    try:
        return Helm(helm.program, copy_with_dependencies(tmp_path_factory.mktemp("real") / "helm_charts"))
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def everything(helm: Helm) -> Rendered:
    return helm.render("SEMR", "values_example")


@pytest.mark.parametrize("profile", PROFILES)
def test_lint_and_render(helm: Helm, profile: str | None) -> None:
    values = [] if profile is None else ["--values", values_of("SEMR", profile)]
    done = helm.run("lint", "--strict", "--kube-version", KUBE_VERSION, helm.charts / "SEMR", *values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert helm.render("SEMR", profile).objects


@pytest.mark.parametrize("profile", PROFILES)
def test_servers_of_the_contract_have_services(helm: Helm, profile: str | None) -> None:
    rendered = helm.render("SEMR", profile)
    # The KubeRay operator makes those of Ray.
    urls = {
        key: value if "//" in value else f"//{value}"
        for key, value in rendered.get("ConfigMap", "semr-contract")["data"].items()
        if ".svc.cluster.local" in value and "semr-ray" not in value and "semr-serving" not in value
    }
    for pod in own(rendered).of("Pod"):
        (variable, *_) = pod["spec"]["containers"][0]["env"]
        if variable["name"] == "URL" and pod["metadata"]["name"] not in ("semr-test-ray", "semr-test-serving"):
            urls[pod["metadata"]["name"]] = variable["value"]
    for key, url in urls.items():
        parts = urlsplit(url)
        name, namespace = str(parts.hostname).split(".")[:2]
        ports = [port["port"] for port in rendered.get("Service", name)["spec"]["ports"]]
        assert (namespace, parts.port or 80) in [("ml", port) for port in ports], f"{key}: {url}"


def test_ways_in_lead_to_pods(helm: Helm, everything: Rendered) -> None:
    """A NodePort selects pods of the other charts by their labels; a route names their Services."""
    for service in everything.of("Service"):
        if service["metadata"]["name"].endswith("-nodeport"):
            _assert_selects(everything, service)
    for route in helm.render("SEMR", "everything-on-values").of("HTTPRoute", "GRPCRoute"):
        (backend,) = route["spec"]["rules"][0]["backendRefs"]
        if "semr-ray-" not in backend["name"] and "semr-serving-" not in backend["name"]:
            found = helm.render("SEMR", "everything-on-values").get("Service", backend["name"])
            assert backend["port"] in [port["port"] for port in found["spec"]["ports"]], backend


def _assert_selects(rendered: Rendered, service: Object) -> None:
    selector, (port,) = service["spec"]["selector"], service["spec"]["ports"]
    if selector.get("operator.prometheus.io/name"):
        # The operator makes the pods; the other chart's own Service says with which labels.
        (theirs,) = [
            each
            for each in rendered.of("Service")
            if each is not service and dig(each, "spec", "selector", "operator.prometheus.io/name")
        ]
        assert selector.items() <= theirs["spec"]["selector"].items()
        return
    if selector.get("ray.io/serve"):
        return
    pods = [pod for pod in rendered.pods if selector.items() <= pod.labels.items()]
    assert pods, service["metadata"]["name"]
    ports = [each for pod in pods for container in pod.containers for each in container.get("ports", [])]
    target = port["targetPort"]
    assert target in [each["name"] for each in ports] + [each["containerPort"] for each in ports], service["metadata"][
        "name"
    ]


def test_policies_and_monitors_know_the_labels_of_others(everything: Rendered) -> None:
    labels = [pod.labels for pod in everything.pods]
    # What the Prometheus operator starts has the labels that their Services select by.
    labels += [dig(each, "spec", "selector") for each in everything.of("Service")]
    selectors = [
        peer["podSelector"]["matchLabels"]
        for policy in everything.of("NetworkPolicy")
        for side, end in (("ingress", "from"), ("egress", "to"))
        for rule in policy["spec"].get(side) or []
        for peer in rule.get(end) or []
        if peer.get("podSelector", {}).get("matchLabels")
    ]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in own(everything).of("PodMonitor")]
    for selector in selectors:
        # Model servers come by another chart.
        if selector.get("app.kubernetes.io/name") == "semr-inference" or "semr.io/inference" in selector:
            continue
        assert any(selector.items() <= (each or {}).items() for each in labels), selector


def test_secrets_and_settings_that_others_read_are_made(everything: Rendered) -> None:
    made = {(each["kind"], each["metadata"]["name"]) for each in everything.of("Secret", "ConfigMap")}
    # Made by its own job.
    made.add(("Secret", "semr-monitoring-admission"))
    for pod in everything.pods:
        volumes = pod.spec.get("volumes") or []
        sources = [source for each in volumes for source in (each, *(dig(each, "projected", "sources") or ()))]
        named = [("ConfigMap", dig(each, "configMap", "name")) for each in sources]
        named += [("Secret", dig(each, "secret", "secretName") or dig(each, "secret", "name")) for each in sources]
        for container in pod.containers:
            named += [("Secret", dig(each, "valueFrom", "secretKeyRef", "name")) for each in container.get("env") or []]
        for kind, name in named:
            assert name is None or (kind, name) in made, f"{pod.owner} names {kind} {name}, which nobody makes"


def test_pods_of_others_are_restricted_but_one(everything: Rendered) -> None:
    """Pod Security "restricted", as the chart's README says of them."""
    unrestricted = set()
    for pod in everything.pods:
        context = pod.spec.get("securityContext") or {}
        fine = not any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        fine = fine and not any("hostPath" in volume for volume in pod.spec.get("volumes") or [])
        for container in pod.containers:
            its = container.get("securityContext") or {}
            fine = fine and bool(its.get("runAsNonRoot", context.get("runAsNonRoot")))
            fine = fine and bool(its.get("seccompProfile") or context.get("seccompProfile"))
            fine = fine and its.get("allowPrivilegeEscalation") is False and dig(its, "capabilities", "drop") == ["ALL"]
        if not fine:
            unrestricted.add(pod.owner)
    assert unrestricted == UNRESTRICTED


def test_images_of_others_are_pinned(everything: Rendered) -> None:
    for pod in everything.pods:
        for container in pod.containers:
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            assert re.search(r"\d", tag), (pod.owner, container["image"])


def test_node_ports_are_taken_once(everything: Rendered) -> None:
    ports = [port.get("nodePort") for each in everything.of("Service") for port in each["spec"]["ports"]]
    taken = [port for port in ports if port]
    assert len(taken) == len(set(taken)) == 7


def test_releases_share_nothing_but_the_kuberay_operator(helm: Helm) -> None:
    def names(release: str) -> set[tuple[str, str]]:
        rendered = helm.render("SEMR", None, release=release)
        return {(each["kind"], each["metadata"]["name"]) for each in rendered.objects}

    shared = {name for _, name in names("semr") & names("other")}
    assert shared and all(KUBERAY_ALONE.match(name) for name in shared), shared


def test_a_second_release_is_told_to_leave_the_kuberay_operator_out(
    helm: Helm, cluster: StandIn, tmp_path: Path
) -> None:
    """By the name that its chart gives to its ClusterRole."""
    roles = {each["metadata"]["name"]: each for each in helm.render("SEMR", None).of("ClusterRole")}
    cluster.add(roles["kuberay-operator"], release="other")
    done = helm.template("SEMR", *cluster.arguments(tmp_path))
    assert "set kuberay-operator.enabled=false" in " ".join(done.stderr.split())


def test_nothing_of_the_control_plane_is_touched(everything: Rendered) -> None:
    """But for the Service by which the cluster's DNS is scraped."""
    outside = {
        (each["kind"], each["metadata"]["name"])
        for each in everything.objects
        if each["metadata"].get("namespace", "ml") != "ml"
    }
    assert outside == {("Service", "semr-monitoring-coredns")}


def test_flyte_s_files_are_read_before_ours(everything: Rendered) -> None:
    theirs, ours = (
        everything.get("ConfigMap", name)["data"] for name in ("semr-flyte-binary-config", "semr-flyte-config")
    )
    assert max(theirs) < min(ours)
    (pod,) = [each for each in everything.pods if each.owner == "Deployment/semr-flyte-binary"]
    (volume,) = [each for each in pod.spec["volumes"] if each["name"] == "config"]
    assert {"configMap": {"name": "semr-flyte-config"}} in volume["projected"]["sources"]


def test_flyte_has_our_rights_and_no_others(everything: Rendered) -> None:
    (pod,) = [each for each in everything.pods if each.owner == "Deployment/semr-flyte-binary"]
    bound = [
        (each["kind"], each["roleRef"]["name"])
        for each in everything.of("RoleBinding", "ClusterRoleBinding")
        if pod.spec["serviceAccountName"] in [subject["name"] for subject in each["subjects"]]
    ]
    assert sorted(bound) == [("ClusterRoleBinding", "ml-semr-flyte-binary"), ("RoleBinding", "semr-flyte-binary")]
    assert everything.get("ServiceAccount", pod.spec["serviceAccountName"])
