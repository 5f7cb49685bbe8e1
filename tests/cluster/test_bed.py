"""The test bed itself: which Kubernetes, which simulated nodes, and that nothing outlives a run that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from bed import NODES, Bed
from build_programs import kubernetes_version
from cluster_tools import Cluster

# Starts a bed in a process of its own, tells the pids of its servers, and waits to be killed.
_STARTER = """
import signal, sys, time
# A shell's background job ignores it otherwise.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = {path!r}
from bed import running_bed
from build_programs import cached
with running_bed(cached()) as bed:
    print(",".join(str(each.process.pid) for each in bed.servers), bed.folder, flush=True)
    time.sleep(600)
"""


def test_kubernetes_is_the_pinned_version(cluster: Cluster, bed: Bed) -> None:
    version = json.loads(cluster.kubectl("version", "--output=json").stdout)
    assert version["serverVersion"]["gitVersion"] == version["clientVersion"]["gitVersion"] == kubernetes_version()


def test_simulated_nodes_are_ready_and_say_that_they_are_simulated(cluster: Cluster, bed: Bed) -> None:
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output=json").stdout)["items"]
    assert {each["metadata"]["name"]: each["metadata"]["labels"]["kubernetes.io/arch"] for each in nodes} == NODES
    for each in nodes:
        assert "simulated" in each["metadata"]["name"]
        assert {"type": "Ready", "status": "True"}.items() <= next(
            item for item in each["status"]["conditions"] if item["type"] == "Ready"
        ).items()


def test_admission_is_real(cluster: Cluster, namespace: str, bed: Bed) -> None:
    """It refuses an unknown PriorityClass, a wrong pod, and a custom resource that its definition does not allow."""
    pod = {"containers": [{"name": "c", "image": "i"}]}
    for each, reason in (
        ({"apiVersion": "v1", "kind": "Pod", "spec": {**pod, "priorityClassName": "nobody"}}, "no PriorityClass"),
        ({"apiVersion": "v1", "kind": "Pod", "spec": {**pod, "restartPolicy": "Sometimes"}}, "supported values"),
        ({"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": {}}, "headGroupSpec"),
    ):
        text = json.dumps({**each, "metadata": {"name": "wrong"}})
        done = cluster.kubectl("create", "-f", "-", f"--namespace={namespace}", text=text, check=False)
        assert done.returncode != 0 and reason in done.stderr, done.stderr


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_run_that_is_ended(bed: Bed, end: signal.Signals) -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit")]
    process = subprocess.Popen(
        [sys.executable, "-c", _STARTER.format(path=folders)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    try:
        assert process.stdout is not None
        began = time.monotonic()
        line = process.stdout.readline()
        pids = [int(each) for each in line.split()[0].split(",")]
        assert len(pids) == 5 and all(psutil.pid_exists(pid) for pid in pids)
        print(f"a bed was ready in {time.monotonic() - began:.1f} s")
    finally:
        process.send_signal(end)
        process.communicate()
    # The API server lets its clients go first.
    deadline = time.monotonic() + 90
    while left := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    if end == signal.SIGINT:
        assert not Path(line.split()[1]).exists()
