"""What a node does to its pods: each server ends by itself, in order, when its pod is deleted."""

from __future__ import annotations

import shutil
import signal

from chart_tools import Helm
from data_plane import DataPlane, Start

#: As PostgreSQL's image names it; the others end on what a kubelet sends by default.
SIGNALS = {"StatefulSet/semr-postgresql": signal.SIGINT}
# Of the 30 that a pod has by default; on a machine that is busy.
MOST_SECONDS = 25


def test_servers_end_by_themselves(helm: Helm, start: Start) -> None:
    owners = [
        "Deployment/semr-evolution",
        "Deployment/semr-mlflow",
        "StatefulSet/semr-postgresql",
        "StatefulSet/semr-minio",
    ]
    if shutil.which("redis-server"):
        owners.insert(0, "Deployment/semr-redis")
    with start(helm.render("SEMR", None, "ray.gcsFaultTolerance.enabled=true")) as plane:
        plane.set_up()
        for owner in owners:
            if owner.startswith("Deployment"):
                plane.serve(owner)
        codes = {owner: _end(plane, owner) for owner in owners}
        assert codes == dict.fromkeys(owners, 0)
        assert "database system is shut down" in plane.servers["StatefulSet/semr-postgresql"].output


def _end(plane: DataPlane, owner: str) -> int:
    process = plane.servers[owner].process
    process.send_signal(SIGNALS.get(owner, signal.SIGTERM))
    # Raises for one that a kubelet would have killed.
    return process.wait(MOST_SECONDS)
