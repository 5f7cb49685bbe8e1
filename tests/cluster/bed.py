"""The test bed: a Kubernetes control plane of this run's own on loopback, with simulated nodes and the KubeRay operator.

Real are etcd, the API server with its admission, the controllers, the scheduler, and the KubeRay operator. Simulated (kwok)
are the two nodes and their kubelets: pods become Ready and jobs complete, but no container runs.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from build_programs import Programs
from certificates import Authority, Pair, key_bytes, kubeconfig, public_bytes
from cryptography.hazmat.primitives.asymmetric import ec

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from local_servers import free_ports

SERVICE_NETWORK = "10.96.0.0/16"
#: Where simulated pods seem to be; nothing is reached there.
POD_NETWORK = "10.244.0.1/16"
#: Simulated nodes by architecture, and what each seems to have.
NODES = {"simulated-amd64": "amd64", "simulated-arm64": "arm64"}
NODE_CAPACITY = {"cpu": "64", "memory": "512Gi", "pods": "400", "ephemeral-storage": "1Ti", "nvidia.com/gpu": "8"}
#: StorageClasses of simulated volumes: the default, and the one that a profile names.
STORAGE_CLASSES = ("standard", "fast")
#: A pod with this annotation never becomes Ready, as one whose model cannot be loaded.
NEVER_READY = "semr-test-never-ready"
_START_SECONDS = 180.0
_STOP_SECONDS = 10.0


class BedError(Exception):
    """The test bed does not start; the message has the end of the log."""


@dataclass
class Server:
    """A process of the bed and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@dataclass
class Bed:
    """A running control plane.

    Attributes:
        url: of the API server.
        kubeconfig: file for its administrator.
        proxy: HTTP proxy of the operator's requests to the cluster's network, which is not there.
    """

    folder: Path
    programs: Programs
    url: str
    authority: Authority
    proxy: str = ""
    servers: list[Server] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    def start(self, name: str, *arguments: str, env: dict[str, str] | None = None) -> Server:
        """Start a program so that it ends with this process, however that ends."""
        log = self.folder / f"{name}.log"
        command = [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("ends_with_parent.py")),
            str(os.getpid()),
            str(self.programs.program(name)),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_clean_environment(), **(env or {})},
                # Ctrl-C goes to pytest alone, which ends them in order.
                start_new_session=True,
            )
        server = Server(name, process, log)
        self.servers.append(server)
        return server

    def check(self) -> None:
        """Raise BedError when a server has ended by itself."""
        for server in self.servers:
            if server.process.poll() is not None:
                raise BedError(f"{server.name} ended with {server.process.returncode}: {server.tail()}")

    def stop(self) -> None:
        """End all servers, the last one first; whoever does not go in time is killed."""
        for server in reversed(self.servers):
            with contextlib.suppress(ProcessLookupError):
                server.process.send_signal(signal.SIGTERM)
            # etcd is last and nothing that it keeps is needed again.
            patience = 1.0 if server.name == "etcd" else _STOP_SECONDS
            try:
                server.process.wait(patience)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
        self.servers.clear()


@contextmanager
def running_bed(programs: Programs) -> Iterator[Bed]:
    """A bed for the time of the block, with everything ready.

    Raises:
        BedError: something does not start in time.
    """
    folder = Path(tempfile.mkdtemp(prefix="semr-cluster-"))
    etcd, peer, api = free_ports(3)
    authority = Authority()
    bed = Bed(folder, programs, f"https://127.0.0.1:{api}", authority)
    try:
        _start_etcd(bed, etcd, peer)
        _start_api_server(bed, etcd, api)
        _wait_for_api(bed)
        _start_controllers(bed)
        _make_nodes_and_storage(bed)
        _apply_definitions(bed)
        _start_kwok(bed)
        _kubectl(bed, "wait", "--for=condition=Ready", "--timeout=60s", "node", "--all")
        yield bed
    finally:
        bed.stop()
        shutil.rmtree(folder, ignore_errors=True)


def start_kuberay(bed: Bed, proxy: str) -> Server:
    """The KubeRay operator, as a process. Its requests to services and pods go through `proxy`."""
    health, metrics = free_ports(2)
    return bed.start(
        "kuberay-operator",
        f"--kubeconfig={bed.kubeconfig}",
        f"--health-probe-bind-address=127.0.0.1:{health}",
        f"--metrics-addr=127.0.0.1:{metrics}",
        "--enable-leader-election=false",
        env={"HTTP_PROXY": proxy, "http_proxy": proxy},
    )


def _start_etcd(bed: Bed, client: int, peer: int) -> None:
    bed.start(
        "etcd",
        f"--data-dir={bed.folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        # The data live as long as the process.
        "--unsafe-no-fsync",
        "--log-level=warn",
    )


def _start_api_server(bed: Bed, etcd: int, port: int) -> None:
    authority = bed.authority
    (bed.folder / "ca.crt").write_bytes(authority.certificate)
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
    certificate, key = authority.server(names, ["127.0.0.1", "10.96.0.1"]).write(bed.folder, "api")
    accounts = ec.generate_private_key(ec.SECP256R1())
    (bed.folder / "accounts.pub").write_bytes(public_bytes(accounts))
    (bed.folder / "accounts.key").touch(mode=0o600)
    (bed.folder / "accounts.key").write_bytes(key_bytes(accounts))
    _write_kubeconfig(bed, "admin", authority.client("semr-test", "system:masters"))
    bed.start(
        "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        # A loopback address is no valid endpoint of the service "kubernetes".
        "--endpoint-reconciler-type=none",
        f"--tls-cert-file={certificate}",
        f"--tls-private-key-file={key}",
        f"--client-ca-file={bed.folder / 'ca.crt'}",
        f"--service-account-key-file={bed.folder / 'accounts.pub'}",
        f"--service-account-signing-key-file={bed.folder / 'accounts.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=RBAC",
        "--profiling=false",
    )


def _start_controllers(bed: Bed) -> None:
    for name, user in (
        ("kube-controller-manager", "system:kube-controller-manager"),
        ("kube-scheduler", "system:kube-scheduler"),
    ):
        _write_kubeconfig(bed, name, bed.authority.client(user))
        common = [f"--kubeconfig={bed.folder / name}.kubeconfig", "--leader-elect=false", "--secure-port=0"]
        if name == "kube-controller-manager":
            common += [
                f"--root-ca-file={bed.folder / 'ca.crt'}",
                f"--service-account-private-key-file={bed.folder / 'accounts.key'}",
                "--use-service-account-credentials=true",
                # Volumes are simulated: kwok binds them.
                "--controllers=*,-persistentvolume-binder-controller",
            ]
        bed.start(name, *common)


def _start_kwok(bed: Bed) -> None:
    stages = bed.folder / "stages.yaml"
    stages.write_text(yaml.safe_dump_all(_stages(bed.programs)))
    bed.start(
        "kwok",
        f"--config={stages}",
        f"--kubeconfig={bed.kubeconfig}",
        "--manage-all-nodes=true",
        "--node-ip=10.0.0.1",
        f"--cidr={POD_NETWORK}",
        "--node-lease-duration-seconds=40",
        "--server-address=127.0.0.1:0",
    )


def _stages(programs: Programs) -> list[dict[str, Any]]:
    """Kwok's own stages, changed where these tests need something else."""
    stages = []
    for path in sorted((programs.folder / "stages").rglob("*.yaml")):
        # All our StorageClasses are simulated.
        text = path.read_text().replace("== 'kwok-volume'", f"in {list(STORAGE_CLASSES)}")
        stages += [each for each in yaml.safe_load_all(text) if each and each["kind"] == "Stage"]
    also = []
    for stage in stages:
        expressions = stage["spec"]["selector"].get("matchExpressions", [])
        if stage["metadata"]["name"] == "pod-ready":
            expressions.append({"key": f'.metadata.annotations["{NEVER_READY}"]', "operator": "DoesNotExist"})
        if stage["metadata"]["name"] == "pod-complete":
            tests = copy.deepcopy(stage)
            tests["metadata"]["name"] = "pod-complete-helm-test"
            # Pods of jobs are told by their owner, those of `helm test` by what helm calls them.
            chosen = [each for each in expressions if "ownerReferences" not in str(each.get("key"))]
            chosen.append({"key": '.metadata.annotations["helm.sh/hook"]', "operator": "Exists"})
            tests["spec"]["selector"]["matchExpressions"] = chosen
            also.append(tests)
    return stages + also


def _wait_for_api(bed: Bed) -> None:
    deadline = time.monotonic() + _START_SECONDS
    certificate, key = bed.authority.client("semr-test-start", "system:masters").write(bed.folder, "start")
    import ssl

    context = ssl.create_default_context(cafile=str(bed.folder / "ca.crt"))
    context.load_cert_chain(certificate, key)
    reason = ""
    with httpx.Client(verify=context, timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            bed.check()
            try:
                answer = client.get(f"{bed.url}/readyz")
                if answer.status_code == 200:
                    return
                reason = answer.text[-500:]
            except httpx.HTTPError as error:
                reason = str(error)
            time.sleep(0.1)
    raise BedError(f"the API server is not ready: {reason} {bed.servers[-1].tail()}")


def _make_nodes_and_storage(bed: Bed) -> None:
    objects: list[dict[str, Any]] = []
    for name, architecture in NODES.items():
        labels = {
            "kubernetes.io/arch": architecture,
            "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": name,
            "type": "kwok",
        }
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
                "status": {
                    "capacity": NODE_CAPACITY,
                    "allocatable": NODE_CAPACITY,
                    "nodeInfo": {"architecture": architecture, "operatingSystem": "linux"},
                },
            }
        )
    for name in STORAGE_CLASSES:
        default = {"storageclass.kubernetes.io/is-default-class": str(name == STORAGE_CLASSES[0]).lower()}
        objects.append(
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": name, "annotations": default},
                "provisioner": "semr.test/simulated",
                "allowVolumeExpansion": True,
            }
        )
    _kubectl(bed, "create", "-f", "-", text=yaml.safe_dump_all(objects))


def _apply_definitions(bed: Bed) -> None:
    """Custom resources as the operators' modules define them, as they are too large for `kubectl apply`."""
    for folder in sorted((bed.programs.folder / "definitions").iterdir()):
        _kubectl(bed, "create", "-f", str(folder))
    _kubectl(bed, "wait", "--for=condition=Established", "--timeout=180s", "customresourcedefinition", "--all")


def _kubectl(bed: Bed, *arguments: str, text: str | None = None) -> None:
    command = [str(bed.programs.program("kubectl")), f"--kubeconfig={bed.kubeconfig}", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        bed.check()
        raise BedError(f"kubectl {' '.join(arguments)}: {done.stderr}")


def _write_kubeconfig(bed: Bed, name: str, user: Pair) -> None:
    path = bed.folder / f"{name}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(kubeconfig(bed.url, bed.authority.certificate, user))


def _clean_environment() -> dict[str, str]:
    """Without proxies, which must not stand between the servers."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def main() -> int:
    """Hold a bed until Ctrl-C, for work on the charts: `KUBECONFIG=... helm install ...`."""
    from build_programs import BuildError, build
    from cluster_network import ClusterNetwork

    # Ended by `kill`, it clears up as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    network = ClusterNetwork()
    try:
        with running_bed(build(timeout_seconds=2400)) as bed:
            start_kuberay(bed, network.url)
            print(f"export KUBECONFIG={bed.kubeconfig} PATH={bed.programs.folder / 'bin'}:$PATH", flush=True)
            while True:
                time.sleep(1)
                bed.check()
    except (BuildError, BedError) as error:
        print(f"bed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        network.stop()


if __name__ == "__main__":
    sys.exit(main())
