"""The contract and the wiring: what the templates hand to SEMR's code and to the charts of others."""

from __future__ import annotations

import base64
from datetime import time
from pathlib import Path

import pytest
import yaml
from chart_tools import CASES, Helm, Object, dig, own, parse, values_given_to

from semr.evolution.policy import ModelPolicy, Policy
from semr.settings import Settings
from semr.stack.services.prometheus import _RAY_KEPT

SEMR_CASES = [profile for chart, profile in CASES if chart == "SEMR"]
ALL = {Settings.variable(field) for field in Settings.model_fields}


def contract(helm: Helm, profile: str | None, *sets: str) -> dict[str, str]:
    """ConfigMap and generated Secret together."""
    rendered = helm.render("SEMR", profile, *sets)
    pairs = dict(rendered.get("ConfigMap", "semr-contract")["data"])
    for secret in rendered.of("Secret"):
        if secret["metadata"]["name"] == "semr-contract":
            pairs |= {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    return pairs


def test_keys_are_those_of_the_settings(helm: Helm) -> None:
    assert set(contract(helm, None, "contract.deploymentTarget=helm")) == ALL
    # Without releases of semr-inference, nobody asks what their values are.
    assert ALL - set(contract(helm, None)) == {"SEMR_HELM_VALUES"}


def test_secrets_are_in_the_secret(helm: Helm) -> None:
    rendered = helm.render("SEMR", None)
    assert set(rendered.get("Secret", "semr-contract")["data"]) == set(Settings.secret_variables())
    assert not set(rendered.get("ConfigMap", "semr-contract")["data"]) & set(Settings.secret_variables())


@pytest.mark.parametrize("profile", SEMR_CASES)
def test_settings_take_every_value(helm: Helm, profile: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = contract(helm, profile)
    assert set(pairs) <= ALL
    for name in ALL:
        monkeypatch.delenv(name, raising=False)
    for name, value in pairs.items():
        assert value, f"{name} is empty: a service that is not there has no key"
        monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    assert settings.contract() == {**Settings(_env_file=None).contract(), **pairs}  # type: ignore[call-arg]


@pytest.mark.parametrize("profile", SEMR_CASES)
def test_releases_of_models_know_the_contract(helm: Helm, profile: str | None, tmp_path: Path) -> None:
    """What the deployment target gives them is accepted by their chart, and is what belongs to this installation."""
    sets = ("contract.deploymentTarget=helm", "inference.values.resources.limits.memory=5Gi")
    rendered = helm.model_release(contract(helm, profile, *sets), "mnist", tmp_path)
    installed = helm.render("SEMR", profile, *sets)
    (pod,) = rendered.pods
    (server,) = pod.spec["containers"]
    assert server["envFrom"] == [{"configMapRef": {"name": "semr-contract"}}]
    names = {each["valueFrom"]["secretKeyRef"]["name"] for each in server["env"] if "valueFrom" in each}
    # An installation without anything of SEMR's own that deploys has no credentials either.
    for tasks in installed.of("PodTemplate"):
        sources = tasks["template"]["spec"]["containers"][0]["envFrom"]
        (secret,) = [each["secretRef"]["name"] for each in sources if "secretRef" in each]
        assert secret in names
    assert server["resources"]["limits"]["memory"] == "5Gi"
    assert bool(rendered.of("ServiceMonitor")) == bool(installed.of("ServiceMonitor"))


def test_external_services_are_in_the_contract(helm: Helm) -> None:
    pairs = contract(helm, "external-services-values")
    assert pairs["SEMR_OBJECT_STORE_ENDPOINT"] == "https://s3.eu-central-1.amazonaws.com"
    assert pairs["SEMR_OBJECT_STORE_REGION"] == "eu-central-1"
    assert pairs["SEMR_MLFLOW_URI"] == "https://mlflow.example.org"
    assert pairs["SEMR_FLYTE_ENDPOINT"] == "https://flyte.example.org"
    assert pairs["SEMR_PROMETHEUS_URL"] == "http://prometheus-operated.monitoring.svc:9090"
    assert pairs["SEMR_ALERTMANAGER_URL"] == "http://alertmanager-operated.monitoring.svc:9093"


def test_urls_name_services_and_ports_that_exist(helm: Helm) -> None:
    rendered = helm.render("SEMR", None)
    pairs = contract(helm, None)
    ports = {
        each["metadata"]["name"]: {port["port"] for port in each["spec"]["ports"]} for each in rendered.of("Service")
    }
    for key in ("SEMR_MLFLOW_URI", "SEMR_OBJECT_STORE_ENDPOINT", "SEMR_EVOLUTION_URL"):
        host, port = pairs[key].removeprefix("http://").split(":")
        name, namespace, rest = host.split(".", 2)
        assert (namespace, rest) == ("ml", "svc.cluster.local")
        assert int(port) in ports[name]
    # The KubeRay operator makes these, by names that it derives from those of its objects.
    assert rendered.get("RayCluster", "semr-ray") and rendered.get("RayService", "semr-serving")
    assert pairs["SEMR_RAY_DASHBOARD_URL"] == "http://semr-ray-head-svc.ml.svc.cluster.local:8265"
    assert pairs["SEMR_SERVE_URL"] == "http://semr-serving-serve-svc.ml.svc.cluster.local:8000"
    assert pairs["SEMR_SERVE_API_URL"] == "http://semr-serving-head-svc.ml.svc.cluster.local:8265"
    assert pairs["SEMR_RAY_SERVICE"] == "ml/semr-serving"


def test_one_ray_cluster_serves_where_there_is_only_one(helm: Helm) -> None:
    pairs = contract(helm, "edge-values")
    assert pairs["SEMR_SERVE_URL"] == "http://semr-ray-head-svc.ml.svc.cluster.local:8000"
    assert "SEMR_SERVE_API_URL" not in pairs and "SEMR_RAY_SERVICE" not in pairs
    assert "SEMR_FLYTE_ENDPOINT" not in pairs and "SEMR_PROMETHEUS_URL" not in pairs


@pytest.mark.parametrize("profile", [None, "everything-on-values", "edge-values"])
def test_all_who_run_semr_get_the_contract(helm: Helm, profile: str | None) -> None:
    rendered = own(helm.render("SEMR", profile))
    owners = {"Deployment/semr-evolution", "PodTemplate/semr-tasks"}
    expected = {pod.owner for pod in rendered.pods if pod.owner in owners or pod.owner.startswith("Ray")}
    for pod in rendered.pods:
        sources = [
            (source.get("configMapRef") or source["secretRef"])["name"]
            for source in pod.spec["containers"][0].get("envFrom", [])
        ]
        assert (sources == ["semr-contract", "semr-contract"]) == (pod.owner in expected), pod.owner
    assert len(expected) >= 2


def test_clients_get_what_they_read_by_themselves(helm: Helm) -> None:
    settings = Settings(
        object_store_endpoint="http://s", object_store_access_key="a", object_store_secret_key="s", mlflow_uri="http://m",
        ray_auth_token="t", _env_file=None,  # type: ignore[call-arg, arg-type]
    )  # fmt: skip
    wanted = set(settings.client_environment())
    rendered = helm.render("SEMR", None)
    for pod in rendered.pods:
        names = {each["name"] for each in pod.spec["containers"][0].get("env", [])}
        if pod.owner == "Deployment/semr-evolution":
            assert wanted <= names, wanted - names
        elif pod.owner.startswith("Ray") or pod.owner == "PodTemplate/semr-tasks":
            # The operator sets Ray's own, from the Secret in authOptions; twice would be refused. Clusters of Flyte's Ray
            # plug-in have no token.
            assert wanted - names == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}


def test_ray_has_the_token_of_the_contract(helm: Helm) -> None:
    rendered = helm.render("SEMR", None)
    token = rendered.get("Secret", "semr-contract")["data"]["SEMR_RAY_AUTH_TOKEN"]
    assert rendered.get("Secret", "semr-ray-auth")["data"]["auth_token"] == token
    for each in (
        rendered.get("RayCluster", "semr-ray")["spec"],
        rendered.get("RayService", "semr-serving")["spec"]["rayClusterConfig"],
    ):
        assert each["authOptions"] == {"mode": "token", "secretName": "semr-ray-auth"}


@pytest.mark.parametrize(("profile", "cluster"), [(None, "RayService"), ("edge-values", "RayCluster")])
def test_haproxy_is_switched_on_where_models_are_served(helm: Helm, profile: str | None, cluster: str) -> None:
    def clusters(*sets: str) -> set[str]:
        rendered = own(helm.render("SEMR", profile, *sets))
        return {
            pod.owner.split("/")[0]
            for pod in rendered.pods
            for each in pod.spec["containers"][0].get("env", [])
            if each == {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"}
        }

    assert clusters() == set()
    assert clusters("ray.serving.haproxy=true") == {cluster}


def test_ray_says_the_version_of_its_image_s_constraints(helm: Helm) -> None:
    from importlib.metadata import version

    assert helm.render("SEMR", None).get("RayCluster", "semr-ray")["spec"]["rayVersion"] == version("ray")
    image = helm.render("SEMR", None).get("Deployment", "semr-mlflow")["spec"]["template"]["spec"]["containers"][0][
        "image"
    ]
    assert image.endswith(f":v{version('mlflow')}-full")


def test_serving_starts_with_an_application_that_exists(helm: Helm) -> None:
    from semr.deployment import standby as deployed
    from semr.inference import standby

    assert deployed.APPLICATION["import_path"] == f"{standby.__name__}:app"
    assert standby.app is not None
    rendered = helm.render("SEMR", None)
    (job,) = [each for each in rendered.of("Job") if each["metadata"]["name"].startswith("semr-serving-setup-")]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", deployed.__name__]
    assert {"name": "SEMR_RAY_SERVICE", "value": "ml/semr-serving"} in container["env"]
    assert rendered.get("Role", pod["serviceAccountName"])["rules"] == rendered.get("Role", "semr-tasks")["rules"]
    test = rendered.get("Pod", "semr-test-serving")
    assert test["spec"]["containers"][0]["env"][0]["value"].endswith(deployed.APPLICATION["route_prefix"])


def test_the_policy_is_one(helm: Helm) -> None:
    text = helm.render("SEMR", None).get("ConfigMap", "semr-evolution")["data"]["policy.yaml"]
    policy = Policy.model_validate(yaml.safe_load(text))
    for model in policy.models.values():
        assert model.launch.flyte is not None and model.launch.local is not None


def test_a_policy_may_say_all_that_the_service_knows(helm: Helm, tmp_path: Path) -> None:
    """The chart's schema is made of the service's, and refuses nothing that the service accepts."""
    model = {
        "alerts": ["ModelStale"],
        "launch": {"flyte": {"launch_plan": "a.b", "version": "v1"}, "inputs": {"epochs": 2, "rate": 0.1, "fast": True}},
        "cooldown_seconds": 0,
        "max_launches_per_day": 1,
        "max_run_seconds": 60,
        "relaunch_after_seconds": 60,
        "quiet_hours": [{"start": "22:00", "end": "06:30:30", "timezone": "Europe/Berlin", "days": ["monday"]}],
        "gate": {
            "min_gain": -0.5, "allowed_loss_on_old": 0, "confidence": 0.95, "latency_factor": 2, "max_size_mb": 0.5,
        },
        "verification": {"seconds": 0.5, "least_requests": 1, "margin": 1},
        "keep_recordings_days": 0.5,
        "deployment_target": "helm",
    }  # fmt: skip
    assert set(ModelPolicy.model_fields) == set(model)
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"evolution": {"policy": {"models": {"other_Model-1": model}}}}))
    done = helm.template("SEMR", "--values", values)
    assert done.returncode == 0, done.stderr
    text = parse(done.stdout).get("ConfigMap", "semr-evolution")["data"]["policy.yaml"]
    found = Policy.model_validate(yaml.safe_load(text)).models["other_Model-1"]
    assert found == ModelPolicy.model_validate(model) and found.quiet_hours[0].end == time(6, 30, 30)
    # What may be left out may be null.
    model |= {"relaunch_after_seconds": None, "gate": {"min_gain": None}, "deployment_target": None}
    values.write_text(yaml.safe_dump({"evolution": {"policy": {"models": {"other_Model-1": model}}}}))
    done = helm.template("SEMR", "--values", values)
    assert done.returncode == 0, done.stderr


def test_evolution_is_started_with_arguments_that_it_knows(helm: Helm) -> None:
    import typer

    from semr.evolution.cli import app

    container = helm.render("SEMR", None).get("Deployment", "semr-evolution")["spec"]["template"]["spec"]["containers"][
        0
    ]
    assert container["command"] == ["semr", "evolve", "serve"]
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {argument.split("=")[0] for argument in container["args"]} <= known


def test_deployers_may_change_the_one_rayservice(helm: Helm) -> None:
    for profile, name in ((None, "semr-evolution"), (None, "semr-tasks")):
        rules = helm.render("SEMR", profile).get("Role", name)["rules"]
        assert rules == [
            {
                "apiGroups": ["ray.io"],
                "resources": ["rayservices"],
                "resourceNames": ["semr-serving"],
                "verbs": ["get", "patch"],
            }
        ]


def test_deployers_may_do_what_the_inference_chart_needs(helm: Helm) -> None:
    """With the target helm: every kind that semr-inference makes, and nothing cluster-wide."""
    rules = helm.render("SEMR", "everything-on-values").get("Role", "semr-tasks")["rules"]
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    kinds = [
        each
        for profile in ("minimal-values", "everything-on-values", "canary-replicas-values")
        for each in helm.render("SEMR_inference", profile).objects
    ]
    for each in kinds:
        group = each["apiVersion"].rpartition("/")[0]
        kind = each["kind"].lower()
        resource = {"networkpolicy": "networkpolicies", "ingress": "ingresses"}.get(kind, kind + "s")
        assert {"get", "create", "patch", "delete"} <= granted[group, resource], (group, resource)


def test_a_policy_that_serves_by_helm_gives_the_right_to(helm: Helm) -> None:
    def resources(*sets: str) -> set[str]:
        return {
            each
            for rule in helm.render("SEMR", None, *sets).get("Role", "semr-tasks")["rules"]
            for each in rule["resources"]
        }

    assert "deployments" not in resources()
    assert {"deployments", "rayservices"} <= resources("evolution.policy.models.mnist.deployment_target=helm")


def test_monitors_keep_the_same_samples_of_ray_as_the_embedded_stack(helm: Helm) -> None:
    endpoint = helm.render("SEMR", None).get("PodMonitor", "semr-ray")["spec"]["podMetricsEndpoints"][0]
    assert endpoint["metricRelabelings"][0]["regex"] == _RAY_KEPT
    assert endpoint["metricRelabelings"][1] == {
        "sourceLabels": ["__name__"], "regex": "ray_(semr_.*)", "targetLabel": "__name__", "replacement": "$1"
    }  # fmt: skip


def test_alerts_come_to_the_webhook_with_the_token(helm: Helm) -> None:
    spec = helm.render("SEMR", None).get("AlertmanagerConfig", "semr-evolution")["spec"]
    assert spec["route"]["matchers"] == [{"name": "semr", "matchType": "=", "value": "evolution"}]
    (webhook,) = spec["receivers"][0]["webhookConfigs"]
    assert webhook["url"] == "http://semr-evolution.ml.svc.cluster.local:8500/api/v1/alerts"
    assert webhook["httpConfig"]["authorization"] == {
        "type": "Bearer", "credentials": {"name": "semr-contract", "key": "SEMR_EVOLUTION_TOKEN"}
    }  # fmt: skip
    strategy = dig(
        values_given_to(helm.render("SEMR", None), "kube-prometheus-stack"), "alertmanager", "alertmanagerSpec"
    )
    assert strategy["alertmanagerConfigMatcherStrategy"] == {"type": "None"}


def test_rules_are_those_of_the_folder(helm: Helm) -> None:
    from chart_tools import CHARTS

    rules = {each["metadata"]["name"]: each["spec"] for each in helm.render("SEMR", None).of("PrometheusRule")}
    for path in (CHARTS / "SEMR" / "rules").glob("*.yaml"):
        assert rules[f"semr-models-{path.stem}"] == yaml.safe_load(path.read_text())


def flyte_config(helm: Helm, profile: str | None) -> Object:
    content: Object = yaml.safe_load(
        helm.render("SEMR", profile).get("ConfigMap", "semr-flyte-config")["data"]["200-semr.yaml"]
    )
    return content


def test_flyte_reads_our_settings(helm: Helm) -> None:
    rendered = helm.render("SEMR", None)
    values = values_given_to(rendered, "flyte-binary")
    assert values["configuration"]["inlineConfigMap"] == "semr-flyte-config"
    assert values["configuration"]["database"]["host"] == "semr-postgresql"
    for variable in values["deployment"]["extraEnvVars"]:
        reference = variable["valueFrom"]["secretKeyRef"]
        assert reference["key"] in rendered.get("Secret", reference["name"])["data"]
    (volume,) = values["deployment"]["extraVolumes"]
    assert volume["secret"]["items"][0]["key"] in rendered.get("Secret", volume["secret"]["secretName"])["data"]
    (mount,) = values["deployment"]["extraVolumeMounts"]
    password = flyte_config(helm, None)["database"]["postgres"]["passwordPath"]
    assert password == f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"


def test_flyte_runs_tasks_from_our_template(helm: Helm) -> None:
    config = flyte_config(helm, None)
    template = helm.render("SEMR", None).get("PodTemplate", config["plugins"]["k8s"]["default-pod-template-name"])
    assert template["metadata"]["namespace"] == config["namespace_mapping"]["template"]
    assert template["template"]["spec"]["serviceAccountName"] == config["flyteadmin"]["k8sServiceAccount"]
    assert [each["name"] for each in template["template"]["spec"]["containers"]] == ["default"]
    assert config["plugins"]["ray"]["serviceType"] == "ClusterIP"
    plugins = values_given_to(helm.render("SEMR", None), "flyte-binary")["enabled_plugins"]["tasks"]["task-plugins"]
    assert "ray" in plugins["enabled-plugins"] and "container" in plugins["enabled-plugins"]


def test_flyte_gives_tasks_what_the_values_say(helm: Helm) -> None:
    """Else its own defaults, written over those of the template: 200 MB."""
    resources = flyte_config(helm, None)["task_resources"]
    assert resources["defaults"] == {"cpu": "250m", "memory": "512Mi"}
    assert resources["limits"] == {"cpu": "8", "memory": "16Gi", "gpu": "1"}


def test_flyte_s_rights_end_at_the_namespace(helm: Helm) -> None:
    rendered = helm.render("SEMR", None)
    assert values_given_to(rendered, "flyte-binary")["rbac"]["create"] is False
    assert flyte_config(helm, None)["propeller"]["limit-namespace"] == "ml"
    granted = {
        (resource, verb)
        for rule in rendered.get("Role", "semr-flyte-binary")["rules"]
        if "resourceNames" not in rule
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {("secrets", "create"), ("pods", "create"), ("flyteworkflows", "delete"), ("rayjobs", "create")} <= granted
    assert not {("secrets", verb) for verb in ("get", "list", "watch", "update")} & granted
    with_theirs = helm.render("SEMR", None, "flyte-binary.rbac.create=true")
    assert not [each for each in with_theirs.of("Role", "ClusterRole") if "flyte" in each["metadata"]["name"]]


def test_servers_of_the_prometheus_stack_can_be_left_out(helm: Helm) -> None:
    off = [f"kube-prometheus-stack.{server}.enabled=false" for server in ("prometheus", "alertmanager", "grafana")]
    pairs = contract(helm, None, *off)
    assert not {"SEMR_PROMETHEUS_URL", "SEMR_ALERTMANAGER_URL"} & pairs.keys()
    rendered = helm.render("SEMR", None, *off)
    tests = {each["metadata"]["name"] for each in own(rendered).of("Pod")}
    assert tests and not {f"semr-test-{server}" for server in ("prometheus", "alertmanager", "grafana")} & tests
    assert "semr-grafana-admin" not in {each["metadata"]["name"] for each in rendered.of("Secret")}
    other = ("kube-prometheus-stack.prometheus.enabled=false", "monitoring.external.prometheusUrl=http://p:9090")
    assert contract(helm, None, *other)["SEMR_PROMETHEUS_URL"] == "http://p:9090"


def test_uploads_of_pyflyte_go_to_the_open_address(helm: Helm) -> None:
    assert "signedURL" not in flyte_config(helm, None)["storage"]
    config = flyte_config(helm, "values_example")
    assert config["storage"]["signedURL"]["stowConfigOverride"]["endpoint"] == "http://node.example.org:30085"


def test_flyte_uses_an_external_database(helm: Helm) -> None:
    config = flyte_config(helm, "ha-values")
    assert config["database"]["postgres"]["host"] == "db.example.org"
    assert config["database"]["postgres"]["options"] == "sslmode=verify-full sslrootcert=/etc/semr/database-ca/ca.crt"
    assert config["storage"]["stow"]["config"]["disable_ssl"] is False


def test_grafana_signs_in_with_our_secret(helm: Helm) -> None:
    rendered = helm.render("SEMR", None)
    admin = values_given_to(rendered, "kube-prometheus-stack")["grafana"]["admin"]
    assert {admin["userKey"], admin["passwordKey"]} == set(rendered.get("Secret", admin["existingSecret"])["data"])


def test_dependencies_are_pinned(helm: Helm) -> None:
    rendered = helm.render("SEMR", None)
    assert values_given_to(rendered, "kuberay-operator")["image"]["tag"] == "v1.7.0"
    assert values_given_to(rendered, "flyte-binary")["deployment"]["image"]["tag"] == "v1.16.8"
    off = helm.render("SEMR", "external-services-values")
    assert not [each for each in off.objects if "stand-in" in each["metadata"]["name"]], (
        "a dependency is not switched off"
    )


def test_each_consumer_of_the_object_store_sees_its_own_buckets(helm: Helm) -> None:
    import json

    data = helm.render("SEMR", None).get("ConfigMap", "semr-minio-setup")["data"]
    buckets = {}
    for name in ("semr", "mlflow", "flyte"):
        statements = json.loads(data[f"{name}.json"])["Statement"]
        assert all("*" not in action for each in statements for action in each["Action"])
        resources = [resource for each in statements for resource in each["Resource"]]
        buckets[name] = {resource.removeprefix("arn:aws:s3:::").removesuffix("/*") for resource in resources}
    assert buckets == {
        "semr": {"semr-datasets", "semr-checkpoints"},
        "mlflow": {"semr-artifacts"},
        "flyte": {"semr-flyte"},
    }


def test_mlflow_answers_to_its_names(helm: Helm) -> None:
    """As the server itself decides it."""
    from mlflow.server.security_utils import is_allowed_host_header

    hosts = (
        helm.render("SEMR", "values_example")
        .get("ConfigMap", "semr-mlflow")["data"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
        .split(",")
    )
    for host in (
        "semr-mlflow:5000", "semr-mlflow.ml:5000", "semr-mlflow.ml.svc.cluster.local:5000", "10.1.2.3:5000",
        "172.20.0.7:5000", "node.example.org:31007", "localhost:5000", "[fd00::7]:5000",
    ):  # fmt: skip
        assert is_allowed_host_header(hosts, host), host
    for host in ("evil.example.org", "semr-mlflow.evil.org:5000", "172.32.0.1:5000", "mlflow:5000"):
        assert not is_allowed_host_header(hosts, host), host
