"""What holds for every object of every profile."""

from __future__ import annotations

import re

import pytest
from chart_tools import CASES, WORKLOADS, Helm, Object, Pod, Rendered, dig, own, values_given_to

LABELS = ("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/part-of", "helm.sh/chart")
# Secrets that a profile declares as existing.
DECLARED = {
    "external-services-values": {"semr-credentials", "semr-database", "semr-s3", "semr-ray-token", "semr-redis"},
    "ha-values": {"semr-credentials", "semr-database", "semr-database-ca", "semr-s3", "semr-ray-token"},
    "everything-on-values": {"mlflow-auth", "semr-contract"},
}


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1] or 'defaults'}")
def case(request: pytest.FixtureRequest, helm: Helm) -> tuple[str, str | None, Rendered]:
    chart, profile = request.param
    return chart, profile, own(helm.render(chart, profile))


@pytest.fixture
def rendered(case: tuple[str, str | None, Rendered]) -> Rendered:
    return case[2]


def test_every_object_has_namespace_and_labels(rendered: Rendered) -> None:
    names = set()
    for each in rendered.objects:
        metadata = each["metadata"]
        assert metadata.get("namespace") == (None if each["kind"].startswith("Cluster") else "ml"), metadata["name"]
        assert all(metadata["labels"].get(label) for label in LABELS), (each["kind"], metadata["name"])
        assert len(metadata["name"]) <= 63
        identity = (each["kind"], metadata["name"])
        assert identity not in names, f"{identity} is there twice"
        names.add(identity)


def test_nothing_is_cluster_wide_but_what_flyte_needs(rendered: Rendered) -> None:
    assert not rendered.of("Namespace", "CustomResourceDefinition")
    for role in rendered.of("ClusterRole", "ClusterRoleBinding"):
        assert role["metadata"]["name"] == "ml-semr-flyte-binary"
    # Its own definition and webhook, and reading templates: no Secret, no pod, no role.
    touched = {
        resource for role in rendered.of("ClusterRole") for rule in role["rules"] for resource in rule["resources"]
    }
    assert touched <= {"podtemplates", "customresourcedefinitions", "mutatingwebhookconfigurations"}
    for role in rendered.of("ClusterRole"):
        for rule in role["rules"]:
            written = set(rule["verbs"]) - {"get", "list", "watch", "create"}
            assert not written or rule["resourceNames"], rule


def test_pods_are_restricted(rendered: Rendered) -> None:
    """Pod Security "restricted", and more: a read-only root, a fixed user."""
    for pod in rendered.pods:
        for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
            assert not pod.spec.get(forbidden), pod.owner
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0, pod.owner
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
        allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected"}
        for volume in pod.spec.get("volumes", []):
            assert set(volume) - {"name"} <= allowed, (pod.owner, volume)
        for container in pod.containers:
            its = container["securityContext"]
            assert its["allowPrivilegeEscalation"] is False, pod.owner
            # Fast registration unpacks code in a task's image; Pod Security does not ask for this one.
            assert its["readOnlyRootFilesystem"] is (pod.owner != "PodTemplate/semr-tasks"), pod.owner
            assert its["capabilities"] == {"drop": ["ALL"]}, pod.owner
            assert not its.get("privileged") and not any("hostPort" in port for port in container.get("ports", []))


def test_containers_have_resources(rendered: Rendered) -> None:
    for pod in rendered.pods:
        for container in pod.containers:
            resources = container.get("resources", {})
            assert dig(resources, "requests", "cpu") and dig(resources, "requests", "memory"), (
                pod.owner,
                container["name"],
            )
            assert dig(resources, "limits", "memory"), (pod.owner, container["name"])


def test_servers_have_probes(rendered: Rendered) -> None:
    """Ray's are put in by its operator; jobs, tests and Flyte's tasks end by themselves."""
    for pod in rendered.pods:
        if pod.owner.startswith(("Deployment/", "StatefulSet/")):
            for container in pod.spec["containers"]:
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    assert container.get(probe), f"{pod.owner} has no {probe}"


def test_images_are_pinned(rendered: Rendered) -> None:
    for pod in rendered.pods:
        for container in pod.containers:
            image = container["image"]
            name, _, tag = image.rpartition(":")
            assert "/" in name and tag and tag not in ("latest", "nightly", "main", "master"), (pod.owner, image)
            assert re.search(r"\d", tag), f"{pod.owner}: {image} names no version"


def test_tokens_are_mounted_only_where_they_are_used(rendered: Rendered) -> None:
    accounts = {each["metadata"]["name"] for each in rendered.of("ServiceAccount")}
    bound = {subject["name"] for each in rendered.of("RoleBinding") for subject in each["subjects"]}
    # Of Flyte's own chart.
    bound.discard("semr-flyte-binary")
    for each in rendered.of("ServiceAccount"):
        assert each["automountServiceAccountToken"] is False
    for pod in rendered.pods:
        account = pod.spec["serviceAccountName"]
        assert account in accounts, f"{pod.owner} runs as {account}, which is not there"
        assert pod.spec["automountServiceAccountToken"] is (account in bound), pod.owner
    assert bound <= accounts


def test_rules_grant_no_wildcard_and_nothing_outside_the_namespace(rendered: Rendered) -> None:
    for each in rendered.of("Role"):
        for rule in each["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], each["metadata"]["name"]
    for each in rendered.of("RoleBinding"):
        assert each["roleRef"]["kind"] == "Role"
        assert any(role["metadata"]["name"] == each["roleRef"]["name"] for role in rendered.of("Role"))


def test_no_credential_is_written_down(rendered: Rendered) -> None:
    suspicious = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL")
    for pod in rendered.pods:
        for container in pod.containers:
            for variable in container.get("env", []):
                if suspicious.search(variable["name"]) and "value" in variable:
                    raise AssertionError(f"{pod.owner}: {variable['name']} is written down")
    for each in rendered.of("ConfigMap"):
        for key, text in each.get("data", {}).items():
            if key.endswith((".json", ".yaml", ".sh")):
                continue
            assert not suspicious.search(key), f"ConfigMap {each['metadata']['name']} has {key}"
            assert not re.search(r"://[^/@\s]+:[^/@\s]+@", text), f"{key} holds a password"


def test_what_is_named_exists_or_is_declared(case: tuple[str, str | None, Rendered]) -> None:
    chart, profile, rendered = case
    declared = DECLARED.get(profile or "", set()) if chart == "SEMR" or profile == "everything-on-values" else set()
    secrets = {each["metadata"]["name"] for each in rendered.of("Secret")} | declared
    config_maps = {each["metadata"]["name"] for each in rendered.of("ConfigMap")} | declared
    claims = {each["metadata"]["name"] for each in rendered.of("PersistentVolumeClaim")}
    keys = {each["metadata"]["name"]: set(each["data"]) for each in rendered.of("Secret")}
    for owner, kind, name, key in _references(rendered):
        known = {"Secret": secrets, "ConfigMap": config_maps, "PersistentVolumeClaim": claims}[kind]
        assert name in known, f"{owner} names {kind} {name}, which nobody makes"
        if kind == "Secret" and key and name in keys:
            assert key in keys[name], f"{owner} reads {key} of Secret {name}, which has {sorted(keys[name])}"


def test_selectors_select(rendered: Rendered) -> None:
    """Each Service, monitor, budget and policy matches a pod, and no workload selects the pods of another."""
    pods = rendered.pods
    services = rendered.of("Service")
    for service in services:
        matching = [pod for pod in pods if _matches(service["spec"]["selector"], pod.labels)]
        foreign = {"app.kubernetes.io/name": {"grafana", "prometheus", "flyte-binary"}}
        if service["spec"]["selector"].get("app.kubernetes.io/name") in foreign["app.kubernetes.io/name"]:
            continue
        if "ray.io/serve" in service["spec"]["selector"]:  # set by the operator
            continue
        assert matching, f"Service {service['metadata']['name']} selects nothing"
        ports = {port["name"] for pod in matching for each in pod.spec["containers"] for port in each.get("ports", [])}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports, f"{service['metadata']['name']}: no port {port['targetPort']}"
    for each in rendered.of("ServiceMonitor"):
        wanted = each["spec"]["selector"]["matchLabels"]
        found = [service for service in services if _matches(wanted, service["metadata"]["labels"])]
        assert found, f"ServiceMonitor {each['metadata']['name']} selects nothing"
        for endpoint in each["spec"]["endpoints"]:
            assert any(endpoint["port"] == port["name"] for service in found for port in service["spec"]["ports"])
    for each in rendered.of("Deployment", "StatefulSet"):
        selector = each["spec"]["selector"]["matchLabels"]
        owners = {pod.owner for pod in pods if _matches(selector, pod.labels)}
        assert owners == {f"{each['kind']}/{each['metadata']['name']}"}


def test_node_ports_are_taken_once(rendered: Rendered) -> None:
    ports = [
        port["nodePort"] for each in rendered.of("Service") for port in each["spec"]["ports"] if "nodePort" in port
    ]
    assert len(ports) == len(set(ports))
    assert all(30000 <= port <= 32767 for port in ports)


def test_everything_is_denied_that_no_policy_opens(case: tuple[str, str | None, Rendered]) -> None:
    _, profile, rendered = case
    if not rendered.of("NetworkPolicy"):
        assert profile == "everything-off-values"
        return
    for pod in rendered.pods:
        policies = [
            each
            for each in rendered.of("NetworkPolicy")
            if _matches(each["spec"]["podSelector"]["matchLabels"], pod.labels)
        ]
        assert policies, f"no policy is about {pod.owner}"
        for policy in policies:
            assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    databases = [each for each in rendered.of("NetworkPolicy") if each["metadata"]["name"] == "semr-postgresql"]
    for policy in databases:
        assert {"port": 5432} in [port for rule in policy["spec"]["ingress"] for port in rule["ports"]]
        assert all(rule.get("from") for rule in policy["spec"]["ingress"]), "the database is open to everybody"
        assert not policy["spec"].get("egress")


def test_config_changes_restart_those_who_read_it(rendered: Rendered) -> None:
    for pod in rendered.pods:
        if pod.owner in ("Deployment/semr-mlflow", "Deployment/semr-evolution"):
            assert re.fullmatch(r"[0-9a-f]{64}", pod.annotations["checksum/config"])


def test_pod_templates_do_not_change_with_the_chart_version(rendered: Rendered) -> None:
    for pod in rendered.pods:
        if not pod.owner.startswith("Pod/"):
            assert "helm.sh/chart" not in pod.labels and "app.kubernetes.io/version" not in pod.labels, pod.owner


def test_all_kinds_of_workload_are_looked_at(helm: Helm) -> None:
    """What the tests above call pods: should a new kind of workload appear, they would be blind to it."""
    rendered = own(helm.render("SEMR", "everything-on-values"))
    with_pods = {each["kind"] for each in rendered.objects if "containers" in str(each)}
    assert with_pods - {"PodMonitor", "ConfigMap"} <= set(WORKLOADS)


def test_everything_off_leaves_the_contract_alone(helm: Helm) -> None:
    rendered = helm.render("SEMR", "everything-off-values")
    assert [(each["kind"], each["metadata"]["name"]) for each in rendered.objects] == [("ConfigMap", "semr-contract")]


def test_two_releases_share_no_name(helm: Helm) -> None:
    one = {(each["kind"], each["metadata"]["name"]) for each in own(helm.render("SEMR", None)).objects}
    other = {
        (each["kind"], each["metadata"]["name"]) for each in own(helm.render("SEMR", None, release="other")).objects
    }
    assert not one & other


def test_the_documented_minimum_is_enough(helm: Helm) -> None:
    """values_example.yaml: 12 CPUs and 32 GB, with the largest number of workers, and the other charts' servers."""
    rendered = helm.render("SEMR", "values_example")
    cpus, gigabytes = 0.0, 0.0
    for pod in own(rendered).pods:
        if pod.owner.startswith(("Job/", "Pod/", "PodTemplate/")):
            continue
        for container in pod.spec["containers"]:
            requests = container["resources"]["requests"]
            times = 2 if "/amd64" in pod.owner or "/default" in pod.owner else 1
            cpus += times * _cpus(requests["cpu"])
            gigabytes += times * _gigabytes(requests["memory"])
    for chart, path in (
        ("kuberay-operator", ("resources", "requests")),
        ("flyte-binary", ("deployment", "resources", "requests")),
        ("kube-prometheus-stack", ("prometheus", "prometheusSpec", "resources", "requests")),
    ):
        requests = dig(values_given_to(rendered, chart), *path)
        cpus, gigabytes = cpus + _cpus(requests["cpu"]), gigabytes + _gigabytes(requests["memory"])
    # Two tasks of Flyte at once, Grafana, Alertmanager, exporters, and the system's own pods.
    cpus, gigabytes = cpus + 2 * 0.5 + 1.0, gigabytes + 2 * 1.0 + 2.0
    assert cpus <= 12, cpus
    assert gigabytes <= 32, gigabytes


def _cpus(text: str) -> float:
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def _gigabytes(text: str) -> float:
    return float(text[:-2]) * {"Mi": 2**20, "Gi": 2**30}[text[-2:]] / 1e9


def _matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def _references(rendered: Rendered) -> list[tuple[str, str, str, str]]:
    """(owner, kind, name, key) of every ConfigMap, Secret and claim that something names."""
    found = []
    for pod in rendered.pods:
        found += _pod_references(pod)
    for each in rendered.of("RayCluster", "RayService"):
        cluster = each["spec"].get("rayClusterConfig", each["spec"])
        owner = each["metadata"]["name"]
        found.append((owner, "Secret", cluster["authOptions"]["secretName"], "auth_token"))
        password = dig(cluster, "gcsFaultToleranceOptions", "redisPassword", "valueFrom", "secretKeyRef")
        if password:
            found.append((owner, "Secret", password["name"], password["key"]))
    for each in rendered.of("AlertmanagerConfig", "ServiceMonitor"):
        found += [(each["metadata"]["name"], "Secret", ref["name"], ref["key"]) for ref in _credentials(each["spec"])]
    return found


def _credentials(value: object) -> list[dict[str, str]]:
    """Every {name, key} below `value`."""
    if isinstance(value, list):
        return [ref for each in value for ref in _credentials(each)]
    if not isinstance(value, dict):
        return []
    if set(value) == {"name", "key"}:
        return [value]
    return [ref for each in value.values() for ref in _credentials(each)]


def _pod_references(pod: Pod) -> list[tuple[str, str, str, str]]:
    found: list[tuple[str, str, str, str]] = []
    for container in pod.containers:
        for source in container.get("envFrom", []):
            kind = "Secret" if "secretRef" in source else "ConfigMap"
            found.append((pod.owner, kind, (source.get("secretRef") or source["configMapRef"])["name"], ""))
        for variable in container.get("env", []):
            reference: Object | None = dig(variable, "valueFrom", "secretKeyRef")
            if reference:
                found.append((pod.owner, "Secret", reference["name"], reference["key"]))
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            found.append((pod.owner, "ConfigMap", volume["configMap"]["name"], ""))
        if "secret" in volume:
            found.append((pod.owner, "Secret", volume["secret"]["secretName"], ""))
        if "persistentVolumeClaim" in volume:
            found.append((pod.owner, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], ""))
    return found
