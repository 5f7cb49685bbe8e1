"""PostgreSQL, MinIO and MLflow of a rendered chart, with what sets them up, on one node."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import boto3
from botocore.config import Config
from build_programs import Programs
from chart_tools import Pod, Rendered
from pod_runner import Node, Running

from semr.settings import Settings

# What the entrypoint of the official image does with these variables, in short.
POSTGRESQL_ENTRYPOINT = r"""
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") $POSTGRES_INITDB_ARGS >/tmp/initdb.log
  printf 'host all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
  printf "listen_addresses = '*'\n" >>"$PGDATA/postgresql.conf"
fi
exec postgres
"""


@dataclass
class DataPlane:
    """Pods by what they are, and those that run.

    Attributes:
        node: where they run.
    """

    node: Node
    servers: dict[str, Running] = field(default_factory=dict)

    def pod(self, owner: str) -> Pod:
        """The pod whose owner begins with this, such as `Job/semr-minio-setup`."""
        (found,) = [each for each in self.node.rendered.pods if each.owner.startswith(owner)]
        return found

    def serve(self, owner: str) -> Running:
        """Start the server of a pod, after its init containers, and wait until its probe succeeds."""
        pod = self.pod(owner)
        self.node.init(pod)
        postgresql = owner == "StatefulSet/semr-postgresql"
        running = self.node.start(
            pod,
            entrypoint=["minio"] if owner == "StatefulSet/semr-minio" else (),
            command=["bash", "-euo", "pipefail", "-c", POSTGRESQL_ENTRYPOINT] if postgresql else None,
        )
        self.servers[owner] = running
        self.node.wait_ready(pod, running)
        return running

    def set_up(self) -> None:
        """Serve PostgreSQL and MinIO and run the jobs that set them up, which begin first: they wait for their servers."""
        jobs = [self.node.start(self.pod(f"Job/semr-{each}-setup")) for each in ("minio", "postgresql")]
        self.serve("StatefulSet/semr-minio")
        self.serve("StatefulSet/semr-postgresql")
        for job in jobs:
            job.wait()

    def kill(self, owner: str) -> None:
        """`kill -9`."""
        self.servers[owner].process.kill()
        self.servers[owner].process.wait()

    def s3(self, access_key: str, secret_key: str) -> Any:
        """A client of MinIO, which gives up soon."""
        return boto3.client(
            "s3",
            endpoint_url=self.node.url(9000),
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 2}, connect_timeout=5, read_timeout=20),
        )

    def s3_of(self, consumer: str) -> Any:
        """A client of MinIO with the key of mlflow, flyte, semr or root."""
        if consumer == "semr":
            data = self.node.data("Secret", "semr-contract")
            return self.s3(data["SEMR_OBJECT_STORE_ACCESS_KEY"], data["SEMR_OBJECT_STORE_SECRET_KEY"])
        data = self.node.data("Secret", "semr-object-store")
        names = (
            ("root-user", "root-password")
            if consumer == "root"
            else (f"{consumer}-access-key", f"{consumer}-secret-key")
        )
        return self.s3(data[names[0]], data[names[1]])

    def settings(self) -> Settings:
        """The contract, as a pod of SEMR's gets it, with endpoints where this process reaches them."""
        values = {**self.node.data("ConfigMap", "semr-contract"), **self.node.data("Secret", "semr-contract")}
        for name in ("SEMR_OBJECT_STORE_ENDPOINT", "SEMR_MLFLOW_URI", "SEMR_EVOLUTION_URL"):
            parts = urlsplit(values[name])
            assert parts.port is not None
            values[name] = urlunsplit(parts._replace(netloc=f"127.0.0.1:{self.node.port(parts.port)}"))
        return Settings.model_validate({name.removeprefix("SEMR_").lower(): value for name, value in values.items()})

    def sql(self, user: str, password: str, database: str, statement: str) -> str:
        """What PostgreSQL answers to a user.

        Raises:
            PodError: it refuses.
        """
        asked = self.node.start(
            self.pod("Job/semr-postgresql-setup"),
            command=["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "-c", statement],
            environment={"PGUSER": user, "PGPASSWORD": password, "PGDATABASE": database},
        )
        return asked.wait(30).strip()


#: Makes a node for a rendered chart, with nothing running yet.
Start = Callable[[Rendered], AbstractContextManager[DataPlane]]


def server_programs(programs: Programs) -> list[Path]:
    """Folders of what images would bring: MinIO and its client, PostgreSQL's server.

    Raises:
        FileNotFoundError: PostgreSQL's server is not on this machine.
    """
    found = shutil.which("postgres")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version)
    if not folders:
        raise FileNotFoundError(
            "PostgreSQL's server (Debian: postgresql; helper_scripts/env-prepare.sh --tests brings it)"
        )
    return [programs.program("minio").parent, folders[-1]]


def _version(path: Path) -> int:
    return int(path.parent.name)


def until(what: str, condition: Any, seconds: float = 60) -> Any:
    """The first true answer of `condition`."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)
    return answer
