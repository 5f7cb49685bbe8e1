"""Commands and configurations of the servers, without starting them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from semr.evolution.policy import load_policy
from semr.stack.context import StackContext, stack_settings
from semr.stack.services import build_services, check_installed, port_requests, service_classes
from semr.stack.services.evolution import EvolutionService
from semr.stack.services.object_store import MinioService, SeaweedService, object_store_class
from semr.stack.services.prometheus import AlertmanagerService, PrometheusService
from semr.stack.services.ray_head import RayService
from semr.stack.state import StackOptions, StateFolder, load_or_create_identity
from semr.stack.status import SERVICE_NAMES


@pytest.fixture
def context(tmp_path: Path) -> StackContext:
    folder = StateFolder.at(tmp_path / ".semr")
    folder.prepare()
    identity = load_or_create_identity(folder)
    requests = [*port_requests(folder), *SeaweedService.port_requests(), *MinioService.port_requests()]
    ports = {request.name: 22000 + number for number, request in enumerate(requests)}
    options = StackOptions(mlflow_backend_uri="postgresql://semr:db-password@127.0.0.1/mlflow")
    return StackContext(folder, identity, options, ports, stack_settings(identity, ports))


def test_names_are_those_of_the_classes(tmp_path: Path) -> None:
    assert tuple(service.name for service in service_classes(StateFolder.at(tmp_path))) == SERVICE_NAMES


def test_port_names_are_unique(tmp_path: Path) -> None:
    names = [request.name for request in port_requests(StateFolder.at(tmp_path))]
    assert len(names) == len(set(names))


def test_no_credential_is_on_a_command_line(context: StackContext) -> None:
    identity = context.identity
    secrets = (identity.access_key, identity.secret_key, identity.ray_token, identity.evolution_token, "db-password")
    for service in [*build_services(context), MinioService(context)]:
        line = " ".join(service.command())
        assert not any(secret in line for secret in secrets), service.name
        assert "0.0.0.0" not in line


def test_object_store_stays_what_made_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StateFolder.at(tmp_path / ".semr")
    folder.prepare()
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    assert object_store_class(folder) is SeaweedService
    (programs / "minio").touch(mode=0o755)
    assert object_store_class(folder) is MinioService
    folder.data("weed").mkdir()
    assert object_store_class(folder) is SeaweedService
    folder.data("weed").rmdir()
    folder.data("minio").mkdir()
    (programs / "minio").unlink()
    assert object_store_class(folder) is MinioService


def test_prometheus_accepts_its_configuration(context: StackContext) -> None:
    prometheus = next(service for service in build_services(context) if isinstance(service, PrometheusService))
    prometheus.prepare()
    path = context.folder.config / "prometheus.yml"
    config = yaml.safe_load(path.read_text())
    assert [job["job_name"] for job in config["scrape_configs"]] == [
        "ray",
        "mlflow",
        "object-store",
        "prometheus",
        "alertmanager",
        "evolution",
    ]
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: run helper_scripts/env-prepare.sh")
    checked = subprocess.run(["promtool", "check", "config", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_are_the_charts_or_faster(context: StackContext) -> None:
    for factor, window in ((None, "[10m]"), (20.0, "[30000ms]")):
        options = dataclasses.replace(context.options, time_compression=factor)
        faster = dataclasses.replace(context, options=options)
        prometheus = next(service for service in build_services(faster) if isinstance(service, PrometheusService))
        prometheus.prepare()
        written = {file.name: file.read_text() for file in (context.folder.config / "rules").iterdir()}
        assert set(written) == {"recording.yaml", "alerts.yaml"}
        assert window in written["recording.yaml"]


def test_alerts_about_models_go_to_the_evolution_service(context: StackContext) -> None:
    alertmanager = next(service for service in build_services(context) if isinstance(service, AlertmanagerService))
    alertmanager.prepare()
    path = context.folder.config / "alertmanager.yml"
    config = yaml.safe_load(path.read_text())
    webhook = config["receivers"][1]["webhook_configs"][0]
    assert webhook["url"] == f"{context.settings.evolution_url}/api/v1/alerts"
    assert webhook["http_config"]["authorization"]["credentials"] == context.settings.need("evolution_token")
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_evolution_service_has_a_policy_and_keeps_its_token_off_the_command_line(context: StackContext) -> None:
    service = EvolutionService(context)
    policy = service.command()[service.command().index("--policy") + 1]
    assert "mnist" in load_policy(Path(policy)).models
    assert context.settings.need("evolution_token") not in " ".join(service.command())
    assert service.environment()["SEMR_EVOLUTION_TOKEN"] == context.settings.need("evolution_token")


def test_programs_are_installed_or_named(tmp_path: Path) -> None:
    from semr.stack.errors import ProgramMissingError

    try:
        check_installed(StateFolder.at(tmp_path))
    except ProgramMissingError as error:
        assert "env-prepare.sh" in str(error)


def test_ray_gets_the_contract_and_stays_on_loopback(context: StackContext) -> None:
    ray = RayService(context)
    environment = ray.environment()
    assert context.settings.contract().items() <= environment.items()
    assert context.settings.client_environment().items() <= environment.items()
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert "--node-ip-address=127.0.0.1" in ray.command()


def test_saved_applications_that_are_broken_are_no_obstacle(context: StackContext) -> None:
    ray = RayService(context)
    for text in ("", "{", json.dumps({"applications": "none"})):
        context.folder.serve_file.write_text(text)
        assert ray.saved_applications() == []
    context.folder.serve_file.write_text(json.dumps({"applications": [{"name": "a"}]}))
    assert ray.saved_applications() == [{"name": "a"}]
