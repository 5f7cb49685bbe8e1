"""What a kubelet does for pods of Flyte's tasks: run the container as the API says, and tell how it ended.

The test bed's own kubelets are simulated and call every pod Running; none of its containers runs. Here the one container of a
task's pod becomes a process of this machine, with this environment in place of the image.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_tools import Cluster, Object

#: Pods of tasks, as the chart's PodTemplate labels them.
SELECTOR = "app.kubernetes.io/component=tasks"
_POLL_SECONDS = 0.3


def environment_of(cluster: Cluster, namespace: str, pod: Object, container: Object) -> dict[str, str]:
    """The variables of a container, with what ConfigMaps, Secrets and fields of the pod say."""

    def data(kind: str, name: str) -> dict[str, str]:
        each = cluster.get(kind, name, namespace)
        assert each is not None, f"a pod wants {kind} {name}"
        plain: dict[str, str] = each.get("data", {})
        return {key: base64.b64decode(value).decode() for key, value in plain.items()} if kind == "secret" else plain

    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        for kind, key in (("configmap", "configMapRef"), ("secret", "secretRef")):
            if key in source:
                found |= data(kind, source[key]["name"])
    for each in container.get("env", []):
        reference = each.get("valueFrom", {})
        if "secretKeyRef" in reference:
            wanted = reference["secretKeyRef"]
            found[each["name"]] = data("secret", wanted["name"])[wanted["key"]]
        elif "fieldRef" in reference:
            value: Any = pod
            for part in reference["fieldRef"]["fieldPath"].split("."):
                value = value[part]
            found[each["name"]] = str(value)
        else:
            found[each["name"]] = each.get("value", "")
    return found


@dataclass
class Ran:
    """A task's container that was started.

    Attributes:
        pod: as the API had it.
        log: what it printed.
        code: its exit code, None while it runs.
    """

    pod: Object
    log: Path
    code: int | None = None


@dataclass
class TaskKubelet:
    """Runs the pods of tasks of a namespace until it is stopped; use it as a context manager.

    Attributes:
        ran: pods by name.
    """

    cluster: Cluster
    namespace: str
    folder: Path
    ran: dict[str, Ran] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._thread = threading.Thread(target=self._work, name="kubelet", daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> TaskKubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        for process in self._processes.values():
            process.kill()
            process.wait()

    def logs(self) -> str:
        """The ends of all logs."""
        if self.error is not None:
            raise self.error
        return "\n".join(f"{name} ({ran.code}): {ran.log.read_text()[-1500:]}" for name, ran in self.ran.items())

    def _work(self) -> None:
        try:
            while not self._stop.wait(_POLL_SECONDS):
                pods = {each["metadata"]["name"]: each for each in self.cluster.all("pods", self.namespace, SELECTOR)}
                for name, pod in pods.items():
                    if name not in self.ran and pod["status"].get("phase") == "Running":
                        self._start(name, pod)
                for name, process in list(self._processes.items()):
                    if name not in pods or "deletionTimestamp" in pods[name]["metadata"]:
                        process.terminate()
                    code = process.poll()
                    if code is not None:
                        del self._processes[name]
                        self.ran[name].code = code
                        self._tell(name, pods.get(name), code)
        except BaseException as error:
            self.error = error
            raise

    def _start(self, name: str, pod: Object) -> None:
        (container,) = pod["spec"]["containers"]
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        log = folder.with_suffix(".log")
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            **environment_of(self.cluster, self.namespace, pod, container),
            "HOME": str(folder),
        }
        command = [*container.get("command", []), *container.get("args", [])]
        with log.open("wb") as output:
            self._processes[name] = subprocess.Popen(
                [re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), each) for each in command],
                cwd=folder,
                env={**environment, **{key: os.environ[key] for key in _OF_THIS_MACHINE if key in os.environ}},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.ran[name] = Ran(pod, log)

    def _tell(self, name: str, pod: Object | None, code: int) -> None:
        if pod is None:
            return
        (container,) = pod["spec"]["containers"]
        (now,) = pod["status"].get("containerStatuses") or [{"name": container["name"]}]
        ended = {"exitCode": code, "reason": "Error" if code else "Completed"}
        ended |= {"startedAt": pod["metadata"]["creationTimestamp"], "finishedAt": pod["metadata"]["creationTimestamp"]}
        status = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{**now, "ready": False, "started": False, "state": {"terminated": ended}}],
        }
        where = (f"--namespace={self.namespace}", "--subresource=status", "--type=merge")
        # It may be gone meanwhile.
        self.cluster.kubectl("patch", "pod", name, *where, f"--patch={json.dumps({'status': status})}", check=False)


#: Settings of this machine that an image would not have, and without which Ray does not stay on loopback.
_OF_THIS_MACHINE = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
