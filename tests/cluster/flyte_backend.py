"""A Flyte backend as a process: the one binary of Flyte's releases, with the configuration that the charts give it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from cluster_tools import Cluster
from local_servers import free_ports
from task_kubelet import environment_of

#: Names the binary, as the image cr.flyte.org/flyteorg/flyte-binary-release has it. No package registry does, and flyteadmin,
#: its larger part, in no archive of a Go module.
PROGRAM_VARIABLE = "SEMR_TEST_FLYTE"
#: What the pod's file system would have at these places.
_PASSWORD = "/etc/semr/database/password"
_START_SECONDS = 120.0


class FlyteError(Exception):
    """The backend does not start; the message has the end of its log."""


@dataclass(frozen=True)
class FlyteBackend:
    """A running backend.

    Attributes:
        grpc: host:port of its gRPC service.
        http: URL of its HTTP service.
        log: what it printed.
    """

    grpc: str
    http: str
    log: Path


def find_flyte() -> Path:
    """The binary.

    Raises:
        FileNotFoundError: there is none.
    """
    given = os.environ.get(PROGRAM_VARIABLE)
    if not given or shutil.which(given) is None:
        raise FileNotFoundError(f"no Flyte: {PROGRAM_VARIABLE} does not name the binary of a release")
    return Path(given)


def config_maps(release: str) -> tuple[str, str]:
    """Names of the ConfigMaps with Flyte's configuration: of its own chart and of SEMR's."""
    return f"{release}-flyte-binary-config", f"{release}-flyte-config"


def validate(program: Path, configs: Iterable[str], folder: Path) -> str:
    """What Flyte says of files of configuration, of which it has to know every key.

    Args:
        program: the binary.
        configs: what is in the files.
        folder: for the files.

    Raises:
        FlyteError: there is something that it does not know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(program), "config", "validate", "--strict"]
    for number, text in enumerate(configs):
        file = folder / f"{number:03d}.yaml"
        file.write_text(text)
        command += ["--file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise FlyteError(said)
    return said


@contextmanager
def running_flyte(
    program: Path, cluster: Cluster, namespace: str, release: str, folder: Path, password: str
) -> Iterator[FlyteBackend]:
    """Flyte of a release of the chart SEMR, with the rights of its own ServiceAccount.

    Args:
        program: the binary.
        cluster: where the release is.
        namespace: of the release.
        release: its name.
        folder: for configuration and log.
        password: of its database.

    Raises:
        FlyteError: it does not start.
    """
    config = folder / "config.d"
    config.mkdir(parents=True)
    for name in config_maps(release):
        found = cluster.get("configmap", name, namespace)
        assert found is not None, name
        for file, text in found["data"].items():
            (config / file).write_text(text.replace(_PASSWORD, str(folder / "password")))
    (folder / "password").write_text(password)
    kubeconfig = cluster.token_kubeconfig(f"{release}-flyte-binary", namespace, folder)
    http, grpc, catalog, webhook, profiler = free_ports(5)
    here = {
        "server": {"kube-config": str(kubeconfig), "httpPort": http, "grpc": {"port": grpc}},
        "admin": {"endpoint": f"localhost:{grpc}", "insecure": True},
        "datacatalogServer": {"grpcPort": catalog},
        "catalog-cache": {"endpoint": f"localhost:{catalog}", "insecure": True, "type": "datacatalog"},
        "propeller": {"kube-config": str(kubeconfig), "prof-port": profiler},
        "webhook": {"certDir": str(folder / "certificates"), "listenPort": webhook},
    }
    # Read after the others.
    (config / "900-here.yaml").write_text(yaml.safe_dump(here))
    log = folder / "flyte.log"
    guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("ends_with_parent.py")), str(os.getpid())]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*guard, str(program), "start", "--config", f"{config}/*.yaml"],
            env=_environment(cluster, namespace, release),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{http}"
        _wait(url, process, log)
        yield FlyteBackend(f"127.0.0.1:{grpc}", url, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(cluster: Cluster, namespace: str, release: str) -> dict[str, str]:
    """The variables of the pod that Flyte's chart makes, whose name Flyte asks the API for."""
    selector = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=flyte-binary"
    cluster.wait(lambda: not cluster.all("pods", namespace, selector))
    (pod,) = cluster.all("pods", namespace, selector)
    (container,) = pod["spec"]["containers"]
    return environment_of(cluster, namespace, pod, container)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if httpx.get(f"{url}/healthcheck", trust_env=False, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise FlyteError(f"Flyte is not well: {log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.3)
