"""What a healthy stack promises: the services work together, on loopback, behind credentials."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
from stack_tools import RunningStack, Semr

from semr.settings import Settings, load_settings
from semr.stack.processes import stack_processes
from semr.stack.state import StateFolder, read_identity

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def _processes(stack: RunningStack) -> list[psutil.Process]:
    identity = read_identity(StateFolder.at(stack.folder))
    assert identity is not None
    return stack_processes(identity.stack_id, Path(identity.runtime))


def _query(settings: Settings, expression: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{settings.need('prometheus_url')}/api/v1/query", params={"query": expression}).json()
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def test_status_shows_every_service(stack: RunningStack, semr: Semr) -> None:
    shown = semr("status", "--dir", str(stack.folder))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    services = json.loads(semr("status", "--json", "--dir", str(stack.folder)).stdout)["services"]
    assert [service["name"] for service in services] == [
        "object-store",
        "mlflow",
        "ray",
        "prometheus",
        "alertmanager",
        "evolution",
    ]
    for service in services:
        assert service["state"] == "healthy"
        assert service["name"] in shown.stdout
        assert service["url"] in shown.stdout
        assert psutil.pid_exists(service["pid"])


def test_second_up_changes_nothing(stack: RunningStack, semr: Semr) -> None:
    before = {process.pid for process in _processes(stack)}
    began = time.monotonic()
    assert semr("up", "--dir", str(stack.folder)).returncode == 0
    assert time.monotonic() - began < 10
    supervisor = json.loads((stack.folder / "status.json").read_text())["supervisor_pid"]
    assert supervisor in before
    assert supervisor in {process.pid for process in _processes(stack)}


def test_up_with_other_options_is_refused(stack: RunningStack, semr: Semr) -> None:
    refused = semr("up", "--ray-cpus", "77", "--dir", str(stack.folder))
    assert refused.returncode == 1
    assert "semr down" in refused.stderr


def test_nothing_listens_beyond_loopback(stack: RunningStack) -> None:
    listening = [
        (process.name(), connection.laddr)
        for process in _processes(stack)
        for connection in process.net_connections(kind="inet")
        if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
    ]
    assert len(listening) >= 20  # the six public ports and the internal ones
    assert [entry for entry in listening if entry[1].ip not in LOOPBACK] == []


def test_no_connection_leaves_the_machine(stack: RunningStack) -> None:
    remote = [
        (process.name(), connection.raddr)
        for process in _processes(stack)
        for connection in process.net_connections(kind="inet")
        if connection.raddr and connection.raddr.ip not in LOOPBACK
    ]
    assert remote == []


def test_secrets_are_private(stack: RunningStack, semr: Semr) -> None:
    for name in ("env", "identity.json", "options.json"):
        assert stat.S_IMODE((stack.folder / name).stat().st_mode) == 0o600
    secrets = [
        stack.settings.need(field) for field in ("object_store_access_key", "object_store_secret_key", "ray_auth_token")
    ]
    assert len(set(secrets)) == 3
    printed = semr("up", "--dir", str(stack.folder)).stdout + semr("status", "--dir", str(stack.folder)).stdout
    printed += "".join(" ".join(process.cmdline()) for process in _processes(stack))
    printed += "".join(path.read_text(errors="replace") for path in (stack.folder / "logs").iterdir())
    assert [secret for secret in secrets if secret in printed] == []


def test_env_is_the_contract_for_a_shell(stack: RunningStack, semr: Semr) -> None:
    exports = semr("env", "--dir", str(stack.folder), env={"SEMR_MLFLOW_URI": "http://elsewhere:1"}).stdout
    shell = subprocess.run(["bash", "-c", f"{exports}\nenv"], capture_output=True, text=True, check=True, env={})
    seen = dict(line.split("=", 1) for line in shell.stdout.splitlines() if "=" in line)
    expected = {**stack.settings.contract(), **stack.settings.client_environment()}
    assert {name: seen.get(name) for name in expected} == expected
    assert load_settings(stack.folder / "env").contract() == stack.settings.contract()


def test_ray_refuses_strangers(stack: RunningStack) -> None:
    dashboard = stack.settings.need("ray_dashboard_url")
    assert httpx.get(f"{dashboard}/api/jobs/").status_code == 401
    assert httpx.post(f"{dashboard}/api/jobs/", json={"entrypoint": "true"}).status_code == 401
    assert httpx.put(f"{dashboard}/api/serve/applications/", json={"applications": []}).status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert httpx.get(f"{dashboard}/api/jobs/", headers=wrong).status_code in (401, 403)


def test_object_store_refuses_strangers(stack: RunningStack) -> None:
    url = stack.settings.need("object_store_endpoint")
    assert httpx.get(f"{url}/{stack.settings.datasets_bucket}").status_code == 403


def test_object_store_has_no_back_door(stack: RunningStack) -> None:
    """SeaweedFS' filer and volume server serve objects too, without S3 credentials unless they are told not to."""
    ports = json.loads((stack.folder / "ports.json").read_text())
    if "object-store-filer" not in ports:
        pytest.skip("the object store is MinIO, which has no filer")
    filer = f"http://127.0.0.1:{ports['object-store-filer']}"
    assert httpx.get(f"{filer}/buckets/").status_code == 401
    assert httpx.post(f"{filer}/buckets/x", content=b"x").status_code == 401
    assert httpx.get(f"http://127.0.0.1:{ports['object-store-volume']}/1,01637037d6").status_code == 401


def test_buckets_are_there(stack: RunningStack) -> None:
    settings = stack.settings
    client = boto3.client(
        "s3",
        endpoint_url=settings.need("object_store_endpoint"),
        region_name=settings.object_store_region,
        aws_access_key_id=settings.need("object_store_access_key"),
        aws_secret_access_key=settings.need("object_store_secret_key"),
    )
    names = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    assert {settings.datasets_bucket, settings.checkpoints_bucket, settings.artifacts_bucket} <= names


def test_job_inherits_the_contract(stack: RunningStack) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    # Ray reads its token from the environment once in a process, and another test may have made it look before.
    headers = {"Authorization": f"Bearer {stack.settings.need('ray_auth_token')}"}
    client = JobSubmissionClient(stack.settings.need("ray_dashboard_url"), headers=headers)
    script = (
        "import ray, semr.settings; ray.init(log_to_driver=False);"
        "read = ray.remote(lambda: semr.settings.load_settings().mlflow_uri); print('URI', ray.get(read.remote()))"
    )
    job = client.submit_job(entrypoint=f'python -c "{script}"')
    deadline = time.monotonic() + 90
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
    logs = client.get_job_logs(job)
    assert client.get_job_status(job) is JobStatus.SUCCEEDED, logs
    assert f"URI {stack.settings.mlflow_uri}" in logs


def test_mlflow_artifacts_go_into_the_object_store(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.settings.need("mlflow_uri"))
    mlflow.set_tracking_uri(stack.settings.need("mlflow_uri"))
    mlflow.set_experiment("stack-test")
    with mlflow.start_run() as run:
        mlflow.log_text("kept", "note.txt")
    assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/note.txt") == "kept"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")


def test_prometheus_scrapes_every_service(stack: RunningStack) -> None:
    url = stack.settings.need("prometheus_url")
    deadline = time.monotonic() + 60
    while True:
        targets = httpx.get(f"{url}/api/v1/targets").json()["data"]["activeTargets"]
        health = {target["labels"]["job"] + " " + target["labels"]["instance"]: target["health"] for target in targets}
        jobs = {target["labels"]["job"] for target in targets}
        if jobs == {"ray", "mlflow", "object-store", "prometheus", "alertmanager", "evolution"} and set(
            health.values()
        ) == {"up"}:
            break
        assert time.monotonic() < deadline, health
        time.sleep(1)
    managers = httpx.get(f"{url}/api/v1/alertmanagers").json()["data"]["activeAlertmanagers"]
    assert [manager["url"] for manager in managers] == [f"{stack.settings.alertmanager_url}/api/v2/alerts"]
    assert _query(stack.settings, "ray_serve_controller_num_control_loops")
    assert _query(stack.settings, 'SeaweedFS_s3_request_total or {__name__=~"minio_.*"}')
    # Most of what Ray exports is for its own dashboard, and is not kept.
    kept = 'sum(scrape_samples_post_metric_relabeling{job="ray"}) / sum(scrape_samples_scraped{job="ray"})'
    assert float(_query(stack.settings, kept)[0]["value"][1]) < 0.7


def test_logs_of_every_service(stack: RunningStack, semr: Semr) -> None:
    for service in ("object-store", "mlflow", "ray", "prometheus", "alertmanager", "evolution", "supervisor"):
        shown = semr("logs", service, "-n", "2", "--dir", str(stack.folder))
        assert shown.returncode == 0
        assert 1 <= len(shown.stdout.splitlines()) <= 2


def test_commands_find_the_stack_from_a_folder_below(stack: RunningStack, semr: Semr) -> None:
    below = stack.folder.parent / "deep" / "er"
    below.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEMR_")}
    shown = subprocess.run(semr.command("status"), cwd=below, env=environment, capture_output=True, check=False)
    assert shown.returncode == 0
