"""Redis as the chart runs it for the state of Ray's clusters."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from chart_tools import Helm
from data_plane import DataPlane, Start

OWNER = "Deployment/semr-redis"


@pytest.fixture
def plane(helm: Helm, start: Start) -> Iterator[DataPlane]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server (Debian: redis-server; helper_scripts/env-prepare.sh --tests brings it)")
    with start(helm.render("SEMR", None, "ray.gcsFaultTolerance.enabled=true")) as made:
        made.serve(OWNER)
        yield made


def ask(plane: DataPlane, password: str, *question: str) -> str:
    command = ["redis-cli", "-h", "semr-redis", *question]
    asked = plane.node.start(plane.pod(OWNER), command=command, environment={"REDISCLI_AUTH": password})
    return asked.wait(30).strip()


def test_it_asks_for_the_password_and_keeps_what_it_was_given(plane: DataPlane) -> None:
    password = plane.node.data("Secret", "semr-redis")["redis-password"]
    assert "NOAUTH" in ask(plane, "", "GET", "state")
    assert "WRONGPASS" in ask(plane, "guessed", "GET", "state")
    assert ask(plane, password, "SET", "state", "kept") == "OK"
    # Written to the disk within a second, as its configuration says.
    ask(plane, password, "WAITAOF", "1", "0", "5000")
    plane.kill(OWNER)
    plane.serve(OWNER)
    assert ask(plane, password, "GET", "state") == "kept"


def test_ray_is_given_its_address_and_password(plane: DataPlane) -> None:
    for kind in ("RayCluster", "RayService"):
        for each in plane.node.rendered.of(kind):
            options = (each["spec"].get("rayClusterConfig") or each["spec"])["gcsFaultToleranceOptions"]
            host = options["redisAddress"].split(":")[0]
            reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
            password = plane.node.data("Secret", reference["name"])[reference["key"]]
            asked = plane.node.start(
                plane.pod(OWNER), command=["redis-cli", "-h", host, "PING"], environment={"REDISCLI_AUTH": password}
            )
            assert asked.wait(30).strip() == "PONG"
