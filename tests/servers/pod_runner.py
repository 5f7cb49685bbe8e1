"""Runs containers of rendered pods as processes, with the command, environment, files and user that the chart gives them.

What a kubelet and a cluster's network would do is done with Linux' namespaces: all pods of a `Node` share one network of their
own, in which names of services lead to its loopback device, so that each server listens on the port that the chart names and
nobody outside sees it. What an image would bring, programs of this machine stand for.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import httpx
from chart_tools import ROOT, Object, Pod, Rendered
from container import join

_CONTAINER = Path(__file__).with_name("container.py")
# Users that images know: PostgreSQL's initdb asks for the name of its own.
_USERS = {"root": 0, "postgres": 999, "nobody": 65534}
_SEEN_EVERYWHERE = (ROOT, Path(sys.prefix), Path(sys.base_prefix))


class Mount(TypedDict):
    """A file or folder of this machine, seen in a container."""

    source: str
    target: str
    read_only: bool


class Specification(TypedDict):
    """What `container.py run` reads."""

    root: str
    user: int
    working_folder: str
    command: list[str]
    environment: dict[str, str]
    mounts: list[Mount]


class PodError(Exception):
    """A container cannot be run, or ended when it should not have."""


def why_not() -> str:
    """Why this machine cannot run pods in this way; empty when it can."""
    if sys.platform != "linux":
        return "namespaces are Linux' own"
    command = ["unshare", "--user", "--map-root-user", "--mount", "--net", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "there is no unshare (util-linux)"
    return f"no namespaces for users: {done.stderr.strip()}" if done.returncode else ""


@dataclass
class Running:
    """A container that was started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 60) -> str:
        """What it said, once it has ended well.

        Raises:
            PodError: it did not end in time, or not with 0.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            raise PodError(f"{self.name} did not end in {seconds} s: {self.output[-2000:]}") from None
        if code != 0:
            raise PodError(f"{self.name} ended with {code}: {self.output[-2000:]}")
        return self.output

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Node:
    """A running network of pods.

    Attributes:
        rendered: the objects among which ConfigMaps, Secrets and Services are found.
        folder: where volumes and logs are kept.
        path: folders with the programs that images would bring.
    """

    rendered: Rendered
    folder: Path
    path: Sequence[Path]
    _holder: subprocess.Popen[str]
    _stack: ExitStack
    _forwarded: dict[int, int] = field(default_factory=dict)

    def start(
        self,
        pod: Pod,
        container: str = "",
        *,
        entrypoint: Sequence[str] = (),
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a container of a pod (default: the first one that is no init container); ended with the node at the latest.

        Args:
            pod: The pod.
            container: Name of the container.
            entrypoint: What the image would run, for a container that names arguments only.
            command: In place of all that.
            environment: Over that of the container.
        """
        chosen = next(
            each for each in pod.containers if each["name"] == (container or pod.spec["containers"][0]["name"])
        )
        context = {**pod.spec.get("securityContext", {}), **chosen.get("securityContext", {})}
        variables = {
            "PATH": ":".join(
                [*map(str, self.path), str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
            ),
            # As runtimes of containers set it for a user without an entry in the image.
            "HOME": "/",
            "LANG": "C.UTF-8",
            **self._environment(chosen),
            **(environment or {}),
        }
        own = [_expanded(each, variables) for each in [*chosen.get("command", entrypoint), *chosen.get("args", [])]]
        return self._run(
            f"{pod.owner}-{chosen['name']}".replace("/", "-").lower(),
            {
                "root": tempfile.mkdtemp(prefix="root-", dir=self.folder),
                "user": context["runAsUser"],
                "working_folder": "/",
                "command": own if command is None else list(command),
                "environment": variables,
                "mounts": self._mounts(pod, chosen),
            },
        )

    def init(self, pod: Pod) -> list[str]:
        """Run the init containers of a pod one after the other; what they said."""
        return [self.start(pod, each["name"]).wait(180) for each in pod.spec.get("initContainers", [])]

    def wait_ready(self, pod: Pod, running: Running, seconds: float = 90) -> None:
        """Wait until the readiness probe of a pod's first container succeeds.

        Raises:
            PodError: it did not in time, or the container ended.
        """
        container = pod.spec["containers"][0]
        end = time.monotonic() + seconds
        while not self._probe(pod, container):
            if running.process.poll() is not None:
                raise PodError(f"{running.name} ended with {running.process.returncode}: {running.output[-3000:]}")
            if time.monotonic() > end:
                raise PodError(f"{running.name} is not ready after {seconds} s: {running.output[-3000:]}")
            time.sleep(0.2)

    def port(self, port: int) -> int:
        """A port of this machine's loopback device that leads to `port` of the node's."""
        if port not in self._forwarded:
            self._forwarded[port] = self._stack.enter_context(_forwarded(self, port))
        return self._forwarded[port]

    def url(self, port: int) -> str:
        """Where this process reaches an HTTP server of the node's."""
        return f"http://127.0.0.1:{self.port(port)}"

    def enter(self) -> list[str]:
        """The beginning of a command that runs in the namespaces of the node."""
        return ["nsenter", f"--target={self._holder.pid}", "--user", "--net", "--mount", "--preserve-credentials", "--"]

    def _run(self, name: str, specification: Specification) -> Running:
        number = len(list(self.folder.glob("*.log")))
        log = self.folder / f"{number:02d}-{name}.log"
        path = log.with_suffix(".json")
        path.touch(0o600)
        path.write_text(json.dumps(specification))
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.enter(), sys.executable, str(_CONTAINER), "run", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        running = Running(name, process, log)
        self._stack.callback(running.stop)
        return running

    def _probe(self, pod: Pod, container: Object) -> bool:
        probe = container["readinessProbe"]
        if "exec" in probe:
            asked = self.start(pod, container["name"], command=probe["exec"]["command"])
            return asked.process.wait(30) == 0
        question = probe["httpGet"]
        port = next(each["containerPort"] for each in container["ports"] if each["name"] == question["port"])
        try:
            return httpx.get(f"{self.url(port)}{question['path']}", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _environment(self, container: Object) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if key in source:
                    # As Kubernetes does: a key that is no name of a variable is left out.
                    data = self.data(kind, source[key]["name"])
                    found |= {
                        name: value for name, value in data.items() if re.fullmatch(r"[-._a-zA-Z][-._a-zA-Z0-9]*", name)
                    }
        for each in container.get("env", []):
            origin = each.get("valueFrom", {})
            if "secretKeyRef" in origin:
                found[each["name"]] = self.data("Secret", origin["secretKeyRef"]["name"])[origin["secretKeyRef"]["key"]]
            elif "configMapKeyRef" in origin:
                reference = origin["configMapKeyRef"]
                found[each["name"]] = self.data("ConfigMap", reference["name"])[reference["key"]]
            elif origin:
                raise PodError(f"{each['name']}: {origin} is not known here")
            else:
                found[each["name"]] = _expanded(str(each.get("value", "")), found)
        return found

    def data(self, kind: str, name: str) -> dict[str, str]:
        """The data of a ConfigMap or Secret as text."""
        data = self.rendered.get(kind, name).get("data") or {}
        return data if kind == "ConfigMap" else {key: base64.b64decode(value).decode() for key, value in data.items()}

    def _mounts(self, pod: Pod, container: Object) -> list[Mount]:
        volumes = {each["name"]: each for each in pod.spec.get("volumes", [])}
        mounts: list[Mount] = []
        for mount in container.get("volumeMounts", []):
            source = self._volume(pod, volumes[mount["name"]]) / mount.get("subPath", "")
            read_only = bool(mount.get("readOnly"))
            target = str(Path(mount["mountPath"]))
            if target == "/var/run" or target.startswith("/var/run/"):
                # An old name of /run, here and in images.
                target = target.removeprefix("/var")
            mounts.append({"source": str(source), "target": target, "read_only": read_only})
        mounts += [_read_only(self.folder / name, Path("/etc") / name) for name in ("hosts", "passwd")]
        hidden = [Path(each["target"]) for each in mounts]
        seen = [path for path in {*_SEEN_EVERYWHERE, *self.path} if any(each in path.parents for each in hidden)]
        return [*mounts, *(_read_only(path, path) for path in seen)]

    def _volume(self, pod: Pod, volume: Object) -> Path:
        if "persistentVolumeClaim" in volume:
            return self._folder("claim", volume["persistentVolumeClaim"]["claimName"])
        place = self._folder(pod.owner.replace("/", "-"), volume["name"])
        for kind, key, name in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
            if key in volume:
                data = self.data(kind, volume[key][name])
                items = volume[key].get("items") or [{"key": each, "path": each} for each in data]
                for item in items:
                    file = place / item["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(data[item["key"]])
        return place

    def _folder(self, *parts: str) -> Path:
        place = self.folder.joinpath("volumes", *parts)
        place.mkdir(parents=True, exist_ok=True)
        return place


@contextmanager
def running_node(rendered: Rendered, folder: Path, path: Sequence[Path] = ()) -> Iterator[Node]:
    """A node for the pods of a rendered chart, without any pod yet."""
    names = [each["metadata"]["name"] for each in rendered.of("Service")]
    namespace = rendered.objects[0]["metadata"]["namespace"]
    forms = ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local")
    hosts = [f"127.0.0.1 {name}{form}\n" for name in names for form in forms]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
    (folder / "passwd").write_text(
        "".join(f"{name}:x:{number}:{number}::/:/bin/sh\n" for name, number in _USERS.items())
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "--net", sys.executable, str(_CONTAINER), "hold"]
    with ExitStack() as stack:
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            raise PodError("the namespaces of the node could not be made")
        yield Node(rendered, folder, path, holder, stack)


@contextmanager
def _forwarded(node: Node, port: int) -> Iterator[int]:
    # The name of a Unix socket has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="semr-") as folder, socket.socket() as server:
        path = str(Path(folder) / "port")
        inside = subprocess.Popen(
            [*node.enter(), sys.executable, str(_CONTAINER), "forward", path, str(port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert inside.stdout is not None
            if inside.stdout.readline() != "ready\n":
                raise PodError(f"port {port} could not be forwarded")
            server.bind(("127.0.0.1", 0))
            server.listen(64)
            threading.Thread(target=_accept, args=(server, path), daemon=True).start()
            yield server.getsockname()[1]
        finally:
            # Wakes the thread in accept.
            server.shutdown(socket.SHUT_RDWR)
            inside.kill()
            inside.wait()


def _accept(server: socket.socket, path: str) -> None:
    while True:
        try:
            near, _ = server.accept()
        except OSError:
            return
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(path)
        except OSError:
            near.close()
            far.close()
            continue
        join(near, far)


def _read_only(source: Path, target: Path) -> Mount:
    return {"source": str(source), "target": str(target), "read_only": True}


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` as Kubernetes replaces it, in values and commands."""
    return re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), text)
