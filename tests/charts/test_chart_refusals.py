"""Values that cannot work are refused, each with a sentence that tells what to set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from chart_tools import Helm
from cluster_stand_in import StandIn

# chart, profile, what is set, words of the refusal
WRONG_VALUES = [
    # the schema: unknown names, wrong types, values out of range
    ("SEMR", None, ["mlfow.enabled=false"], "additional properties 'mlfow' not allowed"),
    ("SEMR", None, ["mlflow.replica=2"], "additional properties 'replica' not allowed"),
    ("SEMR", None, ["ray.jobs.head.nodeselector.a=b"], "additional properties 'nodeselector' not allowed"),
    ("SEMR", None, ["ray.jobs.workerGroups.amd64.replicas=2"], "additional properties 'replicas' not allowed"),
    ("SEMR", None, ["ray.jobs.workerGroups.AMD.enabled=true"], "AMD"),
    ("SEMR", None, ["gateway.endpoints.raay.enabled=true"], "additional properties 'raay' not allowed"),
    ("SEMR", None, ["mlflow.resources.request.cpu=1"], "additional properties 'request' not allowed"),
    ("SEMR", None, ["mlflow.livenessProbe.period=3"], "additional properties 'period' not allowed"),
    ("SEMR", None, ["mlflow.replicas=0"], "minimum: got 0, want 1"),
    ("SEMR", None, ["mlflow.replicas=two"], "got string, want integer"),
    ("SEMR", None, ["mlflow.enabled=1"], "got number, want boolean"),
    ("SEMR", None, ["mlflow.image.tag=v3.17.2"], "does not match pattern '-full$'"),
    ("SEMR", None, ["postgresql.runAsUser=0"], "minimum: got 0, want 1"),
    ("SEMR", None, ["postgresql.architecture=arm"], "value must be one of '', 'amd64', 'arm64'"),
    ("SEMR", None, ["postgresql.databases.flyte=Flyte-DB"], "does not match pattern"),
    ("SEMR", None, ["gateway.type=nginx"], "value must be one of 'none', 'nodePort', 'ingress', 'httpRoute'"),
    ("SEMR", None, ["gateway.endpoints.ray.nodePort=8265"], "minimum: got 8,265, want 30,000"),
    ("SEMR", None, ["minio.external.endpoint=s3.example.org"], "does not match pattern"),
    ("SEMR", None, ["ray.version=2.60"], "'/ray/version'"),
    ("SEMR", None, ["contract.deploymentTarget=kserve"], "value must be one of 'ray_serve', 'helm'"),
    ("SEMR", None, ["evolution.policy.model.x=1"], "additional properties 'model' not allowed"),
    (
        "SEMR",
        None,
        ["evolution.policy.models.mnist.coldown_seconds=60"],
        "additional properties 'coldown_seconds' not allowed",
    ),
    ("SEMR", None, ["evolution.policy.models.mnist.gate.confidence=95"], "exclusiveMaximum: got 95, want 1"),
    ("SEMR", None, ["evolution.policy.models.mnist.launch.inputs.launch_id=x"], "invalid propertyName 'launch_id'"),
    ("SEMR", None, ["evolution.policy.models.mnist.launch=null"], "missing property 'launch'"),
    ("SEMR", None, ["minio.persistence.size=ten"], "does not match pattern"),
    ("SEMR", None, ["flyte-binary.enabled=perhaps"], "got string, want boolean"),
    ("SEMR", None, ["general.host=http://semr.example.org"], "'/general/host'"),
    ("SEMR", None, ["contract.datasetsBucket=SEMR_data"], "does not match pattern"),
    # combinations
    ("SEMR", None, ["postgresql.databases.flyte=mlflow"], 'are both "mlflow", and each is the name of a user too'),
    ("SEMR", None, ["postgresql.databases.mlflow=postgres"], 'has the name "postgres", which is PostgreSQL\'s own'),
    ("SEMR", None, ["minio.flyteBucket=semr-datasets"], "each consumer has buckets of its own"),
    (
        "SEMR",
        None,
        ["general.podLabels.app\\.kubernetes\\.io/part-of=x"],
        "by which Services, monitors and network policies",
    ),
    (
        "SEMR",
        None,
        ["ray.serving.workerGroups.default.minReplicas=0"],
        "ray.serving.workerGroups.default would never be started",
    ),
    (
        "SEMR",
        None,
        ["kube-prometheus-stack.namespaceOverride=monitoring"],
        "SEMR looks for it in the release's namespace at port 9093: leave them out",
    ),
    ("SEMR", None, ["kube-prometheus-stack.prometheus.service.port=80"], "at port 9090: leave them out"),
    ("SEMR", "everything-on-values", ["general.host=10.0.0.5"], "makes names of it, such as mlflow.10.0.0.5"),
    (
        "SEMR",
        "values_example",
        ["gateway.endpoints.s3.nodePort=0"],
        "gateway.endpoints.s3.nodePort is 0, but the server",
    ),
    ("SEMR", None, ["postgresql.enabled=false"], "set postgresql.enabled=true, or postgresql.external.host"),
    (
        "SEMR",
        None,
        ["postgresql.enabled=false", "postgresql.external.host=db"],
        "set postgresql.auth.existingSecret to a Secret with the keys mlflow-password and flyte-password",
    ),
    ("SEMR", None, ["postgresql.external.host=db"], "set postgresql.enabled=false to use the existing server"),
    ("SEMR", None, ["minio.enabled=false"], "set minio.enabled=true, or minio.external.endpoint"),
    (
        "SEMR",
        None,
        ["minio.enabled=false", "minio.external.endpoint=http://s3"],
        "set contract.existingSecret to a Secret",
    ),
    ("SEMR", None, ["minio.external.endpoint=http://s3"], "set minio.enabled=false to use the existing store"),
    (
        "SEMR",
        None,
        [
            "minio.enabled=false",
            "minio.external.endpoint=http://s3",
            "contract.existingSecret=c",
            "ray.auth.existingSecret=r",
        ],
        "set minio.auth.existingSecret to a Secret with mlflow-access-key",
    ),
    ("SEMR", None, ["contract.existingSecret=c"], "set ray.auth.existingSecret to one whose key auth_token equals"),
    ("SEMR", None, ["ray.auth.existingSecret=r"], "ray.auth.existingSecret needs contract.existingSecret too"),
    (
        "SEMR",
        None,
        ["ray.jobs.workerGroups.amd64.enabled=false"],
        "enable a group in ray.jobs.workerGroups, or set ray.jobs.head.numCpus above 0",
    ),
    (
        "SEMR",
        None,
        ["ray.jobs.workerGroups.amd64.minReplicas=9"],
        "ray.jobs.workerGroups.amd64 has minReplicas 9 above maxReplicas 2",
    ),
    (
        "SEMR",
        None,
        ["ray.external.dashboardUrl=http://r:8265"],
        "set ray.jobs.enabled=false to use the existing cluster",
    ),
    (
        "SEMR",
        None,
        ["ray.external.serveUrl=http://r:8000"],
        "set ray.serving.enabled=false to use the existing cluster",
    ),
    (
        "SEMR",
        None,
        ["ray.gcsFaultTolerance.enabled=true", "ray.gcsFaultTolerance.externalRedis=r:6379"],
        "set ray.gcsFaultTolerance.existingSecret to a Secret with the key redis-password",
    ),
    ("SEMR", None, ["mlflow.external.url=http://m"], "set mlflow.enabled=false to use the existing server"),
    (
        "SEMR",
        None,
        ["mlflow.enabled=false"],
        "set mlflow.enabled=true or mlflow.external.url, or evolution.enabled=false",
    ),
    (
        "SEMR",
        None,
        ["ray.jobs.enabled=false", "ray.serving.enabled=false"],
        "set ray.jobs.enabled=true or ray.external.dashboardUrl",
    ),
    ("SEMR", None, ["evolution.external.url=http://e"], "set evolution.enabled=false to use the existing service"),
    ("SEMR", "edge-values", ["evolution.launcher=flyte"], "set flyte-binary.enabled=true or flyte.external.endpoint"),
    ("SEMR", None, ["evolution.policy.models.mnist.launch.flyte=null"], "models.mnist has no launch.flyte"),
    ("SEMR", None, ["flyte.external.endpoint=f:8089"], "set flyte-binary.enabled=false to use the existing Flyte"),
    ("SEMR", None, ["minio.flyteBucket=other"], "is not minio.flyteBucket: set both to the same bucket"),
    (
        "SEMR",
        "ha-values",
        ["postgresql.external.host=db2"],
        'flyte-binary.configuration.database.host is "db.example.org"',
    ),
    (
        "SEMR",
        None,
        ["postgresql.auth.existingSecret=p"],
        "flyte-binary.deployment.extraVolumes names the generated Secret",
    ),
    (
        "SEMR",
        "ha-values",
        ["postgresql.external.port=6432"],
        "flyte-binary.configuration.database.port is 5432: set it to 6432",
    ),
    (
        "SEMR",
        "ha-values",
        ["postgresql.external.caSecret="],
        "sslMode is verify-full, but nobody knows the authority to verify by: set postgresql.external.caSecret",
    ),
    (
        "SEMR",
        "ha-values",
        ["postgresql.external.caSecret=other"],
        'add the Secret "other" to flyte-binary.deployment.extraVolumes',
    ),
    ("SEMR", None, ["minio.auth.existingSecret=m"], "flyte-binary.deployment.extraEnvVars names the generated Secret"),
    ("SEMR", None, ["flyte.taskPodTemplate.enabled=false"], "set flyte.taskPodTemplate.enabled=true"),
    (
        "SEMR",
        None,
        ["monitoring.external.prometheusUrl=http://p"],
        "or kube-prometheus-stack.prometheus.enabled=false to use the existing server",
    ),
    ("SEMR", None, ["monitoring.enabled=false"], "set monitoring.enabled=true, or kube-prometheus-stack.enabled=false"),
    (
        "SEMR",
        None,
        ["monitoring.grafana.existingSecret=g"],
        "set kube-prometheus-stack.grafana.admin.existingSecret to the same",
    ),
    ("SEMR", None, ["gateway.type=nodePort"], "set general.host to the name or IP address that browsers use"),
    ("SEMR", None, ["gateway.type=httpRoute", "general.host=h"], "set gateway.httpRoute.parentRefs"),
    (
        "SEMR",
        "values_example",
        ["gateway.endpoints.ray.nodePort=31007"],
        "gateway.endpoints.mlflow and gateway.endpoints.ray have the same nodePort 31007",
    ),
    (
        "SEMR",
        "values_example",
        ["kube-prometheus-stack.prometheus.service.type=NodePort"],
        "opens NodePort 30090, which gateway.endpoints.minio has",
    ),
    (
        "SEMR",
        "values_example",
        ["flyte-binary.service.nodePorts.http=31082"],
        "flyte-binary.service.nodePorts.http is 31082, which gateway.endpoints.flyte has",
    ),
    # the inference chart
    ("SEMR_inference", None, [], "set model.name to a registered model of MLflow"),
    ("SEMR_inference", None, ["model.name=m"], "Set model.version, or model.alias such as champion"),
    ("SEMR_inference", "minimal-values", ["model.alias=champion"], "model.version and model.alias are both set"),
    ("SEMR_inference", "minimal-values", ["model.follow=true"], "set model.alias in place of model.version"),
    ("SEMR_inference", "minimal-values", ["model.version=latest"], "'latest' does not match pattern"),
    ("SEMR_inference", "minimal-values", ["model.version=0"], "minimum: got 0, want 1"),
    ("SEMR_inference", "minimal-values", ["model.name=a/b"], "'/model/name'"),
    ("SEMR_inference", "minimal-values", ["gateway.host=https://x.org"], "'/gateway/host'"),
    (
        "SEMR_inference",
        "minimal-values",
        ["podLabels.semr\\.io/track=x"],
        "by which Services, monitors and network policies",
    ),
    ("SEMR_inference", "minimal-values", ["contract.secret=x"], "Set contract.configMap"),
    ("SEMR_inference", "minimal-values", ["mlflow.url="], "Set mlflow.url, or contract.configMap"),
    ("SEMR_inference", "minimal-values", ["canary.enabled=true"], "set one of canary.version and canary.alias"),
    ("SEMR_inference", "minimal-values", ["canary.enabled=true", "canary.version=7"], "serves what the others serve"),
    ("SEMR_inference", "minimal-values", ["canary.weight=100"], "maximum: got 100, want 99"),
    (
        "SEMR_inference",
        "minimal-values",
        ["autoscaling.enabled=true", "autoscaling.minReplicas=9"],
        "autoscaling.minReplicas is above autoscaling.maxReplicas",
    ),
    (
        "SEMR_inference",
        "minimal-values",
        ["autoscaling.enabled=true", "autoscaling.cpuUtilization=0"],
        "set autoscaling.cpuUtilization or autoscaling.requestsInFlight above 0",
    ),
    (
        "SEMR_inference",
        "minimal-values",
        ["autoscaling.enabled=true", "resources.requests.cpu=null"],
        "set resources.requests.cpu, or autoscaling.cpuUtilization=0",
    ),
    ("SEMR_inference", "minimal-values", ["gateway.type=ingress"], "Set gateway.host"),
    ("SEMR_inference", "minimal-values", ["gateway.type=httpRoute", "gateway.host=h"], "set gateway.parentRefs"),
    ("SEMR_inference", "minimal-values", ["replica=3"], "additional properties 'replica' not allowed"),
]


@pytest.mark.parametrize(
    ("chart", "profile", "sets", "words"),
    WRONG_VALUES,
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_refused_with_a_sentence(helm: Helm, chart: str, profile: str | None, sets: list[str], words: str) -> None:
    assert words in helm.refusal(chart, profile, *sets)


def test_long_release_names_are_refused(helm: Helm) -> None:
    done = helm.template("SEMR", release="a-release-name-that-is-too-long")
    assert "choose one of at most 30" in done.stderr


def second_operator(helm: Helm, cluster: StandIn, folder: Path) -> str:
    """What helm says in a cluster where another release has brought the KubeRay operator."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "kuberay-operator"},
    }
    cluster.add(role, release="other")
    done = helm.template("SEMR", *cluster.arguments(folder))
    assert done.returncode != 0
    return " ".join(done.stderr.split())


def test_a_second_kuberay_operator_is_refused(helm: Helm, cluster: StandIn, tmp_path: Path) -> None:
    assert helm.template("SEMR", *cluster.arguments(tmp_path)).returncode == 0
    said = second_operator(helm, cluster, tmp_path)
    assert 'of release "other" in namespace "ml"' in said and "set kuberay-operator.enabled=false" in said
    off = helm.template("SEMR", *cluster.arguments(tmp_path), "--set", "kuberay-operator.enabled=false")
    assert off.returncode == 0, off.stderr
    theirs = helm.template("SEMR", *cluster.arguments(tmp_path), release="other")
    assert theirs.returncode == 0, theirs.stderr


def test_every_guard_is_tried(helm: Helm, cluster: StandIn, tmp_path: Path) -> None:
    """Each `fail` of the validation templates speaks up in a row of the table, or in a test above."""
    said = [second_operator(helm, cluster, tmp_path)]
    said += [helm.refusal(chart, profile, *sets) for chart, profile, sets, _ in WRONG_VALUES]
    said += [" ".join(helm.template(chart, release="r" * 51).stderr.split()) for chart in ("SEMR", "SEMR_inference")]
    for chart in ("SEMR", "SEMR_inference"):
        for line in (helm.charts / chart / "templates" / "validation.yaml").read_text().splitlines():
            found = re.search(r'fail (?:\(printf )?"((?:[^"\\]|\\.)*)"', line)
            if found is None:
                assert "fail" not in line or line.startswith("{{- /*"), line
                continue
            pieces = re.split(r"%[sdvq]", found[1].replace('\\"', '"'))
            sentence = re.compile(".+?".join(re.escape(piece) for piece in pieces))
            assert any(sentence.search(each) for each in said), f"no row of the table reaches: {found[1]}"
