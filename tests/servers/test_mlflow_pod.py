"""MLflow as the chart runs it: on PostgreSQL and MinIO, with the users that the setup jobs make."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import mlflow
import pytest
from chart_tools import Helm
from data_plane import DataPlane, Start, until
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

OWNER = "Deployment/semr-mlflow"


@pytest.fixture(scope="module")
def served(helm: Helm, start: Start) -> Iterator[DataPlane]:
    """As the chart's defaults have it. Migrations begin before there is a database."""
    with start(helm.render("SEMR")) as plane:
        migrations = [plane.node.start(plane.pod(OWNER), "migrate") for _ in range(2)]
        plane.set_up()
        for migration in migrations:
            migration.wait(240)
        plane.serve(OWNER)
        yield plane


@pytest.fixture(scope="module")
def guarded(helm: Helm, start: Start) -> Iterator[DataPlane]:
    """With basic authentication."""
    with start(helm.render("SEMR", None, "mlflow.auth.enabled=true")) as plane:
        plane.set_up()
        plane.serve(OWNER)
        yield plane


@pytest.fixture
def client(served: DataPlane) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(served.settings().mlflow_uri)


@pytest.fixture(autouse=True)
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal comes at once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def url(plane: DataPlane) -> str:
    return plane.node.url(5000)


def log_model(client: mlflow.MlflowClient, tmp_path: Path, experiment: str) -> tuple[str, bytes]:
    """A run with a metric and a file of 12 MB, which is sent in parts where the server can; its id and the file's content."""
    found = client.get_experiment_by_name(experiment)
    identifier = found.experiment_id if found else client.create_experiment(experiment)
    run = client.create_run(identifier).info.run_id
    content = bytes(range(256)) * 48 * 1024
    (tmp_path / "weights").write_bytes(content)
    client.log_metric(run, "accuracy", 0.5)
    client.log_artifact(run, str(tmp_path / "weights"), "model")
    return run, content


def test_artifacts_go_through_the_server_into_its_bucket(
    served: DataPlane, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    run, content = log_model(client, tmp_path, "artifacts")
    assert client.get_run(run).info.artifact_uri.startswith("mlflow-artifacts:/")
    keys = [each["Key"] for each in served.s3_of("mlflow").list_objects_v2(Bucket="semr-artifacts")["Contents"]]
    assert [each for each in keys if each.endswith(f"{run}/artifacts/model/weights")]
    (tmp_path / "fetched").mkdir()
    fetched = client.download_artifacts(run, "model/weights", str(tmp_path / "fetched"))
    assert Path(fetched).read_bytes() == content
    assert [each.path for each in client.list_artifacts(run, "model")] == ["model/weights"]


def test_nobody_is_sent_to_the_object_store(served: DataPlane, client: mlflow.MlflowClient, tmp_path: Path) -> None:
    """Its address is known in the cluster only, and there network policies keep clients away from it."""
    told = httpx.get(f"{url(served)}/api/3.0/mlflow/server-info", trust_env=False).json()
    assert told["multipart_downloads_enabled"] is told["multipart_uploads_enabled"] is False
    run, _ = log_model(client, tmp_path, "addresses")
    experiment = client.get_run(run).info.experiment_id
    path = f"/api/2.0/mlflow-artifacts/presigned/{experiment}/{run}/artifacts/model/weights"
    assert httpx.get(url(served) + path, trust_env=False).status_code >= 400


def test_deleted_runs_leave_nothing_behind(served: DataPlane, client: mlflow.MlflowClient, tmp_path: Path) -> None:
    run, _ = log_model(client, tmp_path, "deleted")
    get_artifact_repository(client.get_run(run).info.artifact_uri, tracking_uri=url(served)).delete_artifacts()
    found = served.s3_of("mlflow").list_objects_v2(Bucket="semr-artifacts").get("Contents", [])
    assert not [each["Key"] for each in found if run in each["Key"]]


def test_versions_and_aliases_survive_kill_9(served: DataPlane, client: mlflow.MlflowClient, tmp_path: Path) -> None:
    run, _ = log_model(client, tmp_path, "registry")
    client.create_registered_model("mnist")
    made = client.create_model_version("mnist", f"runs:/{run}/model", run)
    client.set_registered_model_alias("mnist", "champion", made.version)
    served.kill(OWNER)
    served.serve(OWNER)
    assert client.get_model_version_by_alias("mnist", "champion").version == made.version
    assert client.get_run(run).data.metrics["accuracy"] == 0.5


def test_names_of_the_service_are_answered_and_others_refused(served: DataPlane) -> None:
    names = [
        *(f"semr-mlflow{each}" for each in ("", ".ml", ".ml.svc", ".ml.svc.cluster.local")),
        "10.1.2.3",
        "172.20.0.9",
    ]
    question = "/api/2.0/mlflow/experiments/search?max_results=1"
    for name in names:
        answer = httpx.get(url(served) + question, headers={"Host": f"{name}:5000"}, trust_env=False)
        assert answer.status_code == 200, name
    rebound = httpx.get(url(served) + question, headers={"Host": "evil.example.org"}, trust_env=False)
    assert rebound.status_code == 403
    # Where probes and `helm test` ask.
    assert httpx.get(url(served) + "/health", headers={"Host": "evil.example.org"}, trust_env=False).status_code == 200


def test_metrics_are_where_the_service_monitor_looks(served: DataPlane) -> None:
    (endpoint,) = served.node.rendered.get("ServiceMonitor", "semr-mlflow")["spec"]["endpoints"]
    address = {"Host": "10.1.2.3:5000"}
    answer = httpx.get(url(served) + endpoint.get("path", "/metrics"), headers=address, trust_env=False)
    assert answer.status_code == 200
    assert "mlflow_http_request_total" in answer.text or "flask_http_request" in answer.text


def test_without_its_database_it_says_so_and_comes_back(served: DataPlane, client: mlflow.MlflowClient) -> None:
    served.kill("StatefulSet/semr-postgresql")
    began = time.monotonic()
    with pytest.raises(MlflowException):
        client.search_experiments()
    assert time.monotonic() - began < 60
    served.serve("StatefulSet/semr-postgresql")
    assert until("MLflow", lambda: _answered(client))


def _answered(client: mlflow.MlflowClient) -> bool:
    try:
        return bool(client.search_experiments())
    except MlflowException:
        return False


def test_a_second_migration_changes_nothing(served: DataPlane) -> None:
    served.node.start(served.pod(OWNER), "migrate").wait(120)


def test_without_password_nothing_is_told(guarded: DataPlane) -> None:
    for path in (
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/",
        "/metrics",
        "/api/2.0/mlflow-artifacts/artifacts",
    ):
        assert httpx.get(url(guarded) + path, trust_env=False).status_code == 401, path
    wrong = httpx.get(url(guarded) + "/", auth=("semr", "guessed"), trust_env=False)
    assert wrong.status_code == 401
    assert httpx.get(url(guarded) + "/health", trust_env=False).status_code == 200


def test_the_upstream_default_password_is_refused(guarded: DataPlane) -> None:
    for user in ("admin", "semr"):
        for password in ("password", "password1234", "admin"):
            answer = httpx.get(url(guarded) + "/", auth=(user, password), trust_env=False)
            assert answer.status_code == 401, (user, password)


def test_pods_of_semr_have_the_password(guarded: DataPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variables that the chart gives the evolution service are those that MLflow's client takes."""
    secret = guarded.node.data("Secret", "semr-mlflow-auth")
    for each in guarded.pod("Deployment/semr-evolution").spec["containers"][0]["env"]:
        if each["name"] == "MLFLOW_TRACKING_USERNAME":
            monkeypatch.setenv(each["name"], each["value"])
        if each["name"] == "MLFLOW_TRACKING_PASSWORD":
            monkeypatch.setenv(each["name"], secret[each["valueFrom"]["secretKeyRef"]["key"]])
    client = mlflow.MlflowClient(guarded.settings().mlflow_uri)
    run, content = log_model(client, tmp_path, "guarded")
    assert Path(client.download_artifacts(run, "model/weights", str(tmp_path))).read_bytes() == content


def test_prometheus_has_the_password(guarded: DataPlane) -> None:
    (endpoint,) = guarded.node.rendered.get("ServiceMonitor", "semr-mlflow")["spec"]["endpoints"]
    name, password = (
        guarded.node.data("Secret", endpoint["basicAuth"][each]["name"])[endpoint["basicAuth"][each]["key"]]
        for each in ("username", "password")
    )
    assert httpx.get(url(guarded) + "/metrics", auth=(name, password), trust_env=False).status_code == 200
