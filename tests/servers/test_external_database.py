"""A database outside, behind TLS: MLflow and `helm test` verify whom they talk to."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from certificates import Authority, Pair
from chart_tools import Helm, Object, Pod, Rendered
from data_plane import POSTGRESQL_ENTRYPOINT, DataPlane, Start
from pod_runner import Node, PodError

HOST = "127.0.0.1"
AUTHORITY = Authority()
_TLS = r"""
printf '%s' "$CERTIFICATE" >/tmp/server.crt
(umask 077 && printf '%s' "$KEY" >/tmp/server.key)
set -- -c ssl=on -c ssl_cert_file=/tmp/server.crt -c ssl_key_file=/tmp/server.key
"""


def outside(helm: Helm, mode: str) -> Rendered:
    """The chart with its database elsewhere, and the Secrets that an administrator makes."""
    rendered = helm.render(
        "SEMR",
        None,
        "postgresql.enabled=false",
        f"postgresql.external.host={HOST}",
        f"postgresql.external.sslMode={mode}",
        "postgresql.external.caSecret=database-ca",
        "postgresql.auth.existingSecret=database",
        "flyte-binary.enabled=false",
        "evolution.launcher=local",
    )
    passwords = {f"{user}-password": f"{user} its password" for user in ("postgres", "mlflow", "flyte")}
    return Rendered(
        (
            *rendered.objects,
            _secret("database", passwords),
            # By which name the pods of a server of the chart's own ask for theirs.
            _secret("semr-postgresql", passwords),
            _secret("database-ca", {"ca.crt": AUTHORITY.certificate.decode()}),
        )
    )


def _secret(name: str, data: dict[str, str]) -> Object:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "ml"}, "data": encoded}


def serve(helm: Helm, node: Node, pair: Pair) -> None:
    """PostgreSQL with TLS, with databases and users."""
    own = {pod.owner: pod for pod in helm.render("SEMR").pods}
    server = own["StatefulSet/semr-postgresql"]
    entrypoint = POSTGRESQL_ENTRYPOINT.replace("exec postgres", f'{_TLS}exec postgres "$@"')
    running = node.start(
        server,
        command=["bash", "-euo", "pipefail", "-c", entrypoint],
        environment={"CERTIFICATE": pair.certificate.decode(), "KEY": pair.key.decode()},
    )
    node.wait_ready(server, running)
    (setup,) = [pod for owner, pod in own.items() if owner.startswith("Job/semr-postgresql-setup")]
    node.start(setup, environment={"PGHOST": HOST}).wait()


@pytest.fixture(scope="module")
def plane(helm: Helm, start: Start) -> Iterator[DataPlane]:
    """With a server that the authority vouches for."""
    with start(outside(helm, "verify-full")) as made:
        serve(helm, made.node, AUTHORITY.server(["db.example.org"], [HOST]))
        yield made


def ask(plane: DataPlane, **environment: str) -> str:
    """What the pod of `helm test` says."""
    return plane.node.start(plane.pod("Pod/semr-test-postgresql"), environment=environment).wait(60)


def test_helm_test_signs_in(plane: DataPlane) -> None:
    said = ask(plane)
    assert "mlflow" in said
    # There is no Flyte here.
    assert "flyte" not in said


def test_mlflow_makes_its_tables(plane: DataPlane) -> None:
    plane.node.init(plane.pod("Deployment/semr-mlflow"))
    pod = plane.pod("Pod/semr-test-postgresql")
    psql = 'PGPASSWORD="$MLFLOW_PASSWORD" psql --username=mlflow --tuples-only'
    question = f'{psql} --command="SELECT count(*) FROM registered_models"'
    assert plane.node.start(pod, command=["sh", "-c", question]).wait().strip() == "0"


def test_a_server_of_another_name_is_not_talked_to(plane: DataPlane) -> None:
    with pytest.raises(PodError, match="does not match host name"):
        ask(plane, PGHOST="localhost")


def test_a_server_of_another_authority_is_not_talked_to(helm: Helm, start: Start) -> None:
    with start(outside(helm, "verify-ca")) as made:
        serve(helm, made.node, Authority().server(["db.example.org"], [HOST]))
        with pytest.raises(PodError, match="SSL error"):
            ask(made)
        mlflow: Pod = made.pod("Deployment/semr-mlflow")
        script = 'timeout 60 mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"'
        with pytest.raises(PodError, match="SSL error"):
            made.node.start(mlflow, "migrate", command=["sh", "-c", script]).wait(90)
