"""Serving on a real Ray Serve: versions that cannot be loaded, switches under load, two deployers at once."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest
from stack_tools import RunningStack
from workflow_tools import no_model_left, processes_of_stack, register_constant, unique

from semr.deployment.ray_serve import RayServeTarget
from semr.deployment.target import DeploymentError
from semr.deployment.verification import ProbeReport, VerificationError, check_or_restore, probe_classifier
from semr.errors import DependencyUnavailableError
from semr.inference.client import InferenceClient, InferenceError, Prediction
from semr.registry import ModelVersionRef, Registry
from semr.settings import Settings

# SEMR_TEST_SWITCHES=200 and SEMR_TEST_ENDURANCE_SECONDS=600 show more.
SWITCHES = int(os.environ.get("SEMR_TEST_SWITCHES", "3"))
ENDURANCE_SECONDS = float(os.environ.get("SEMR_TEST_ENDURANCE_SECONDS", "25"))
KILL_EVERY_SECONDS = 20.0
CLIENTS = 3
ROW = {"input-0": np.zeros((1, 2), dtype=np.float32)}


@dataclass
class Load:
    """What clients that never pause have got: (version, value) pairs, and errors."""

    answers: list[tuple[str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def replicas_of(stack: RunningStack, name: str) -> list[psutil.Process]:
    """The processes that answer for a model, oldest first."""
    found = []
    for process in processes_of_stack(stack.folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"ServeReplica:{name}:" in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=psutil.Process.create_time)


def ask(url: str, model: str) -> tuple[str, float]:
    with InferenceClient(url, model) as client:
        return _version_and_value(client.infer(ROW))


def _version_and_value(prediction: Prediction) -> tuple[str, float]:
    (output,) = prediction.outputs.values()
    return prediction.version, float(output[0, 0])


@contextmanager
def load_on(url: str, model: str, clients: int = CLIENTS) -> Iterator[Load]:
    """Requests without a pause from `clients` threads while the block runs."""
    load, ended = Load(), threading.Event()

    def requests() -> None:
        with InferenceClient(url, model, timeout_seconds=30) as client:
            while not ended.is_set():
                try:
                    load.answers.append(_version_and_value(client.infer(ROW)))
                except (InferenceError, DependencyUnavailableError) as error:
                    load.errors.append(str(error))

    threads = [threading.Thread(target=requests) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@dataclass(frozen=True)
class Served:
    """A model of which version 1 is served and champion; version 2 is registered, version 3 cannot be loaded."""

    name: str
    url: str
    settings: Settings
    versions: tuple[ModelVersionRef, ModelVersionRef, ModelVersionRef]

    @property
    def target(self) -> RayServeTarget:
        return RayServeTarget(self.settings)

    @property
    def registry(self) -> Registry:
        return Registry(self.settings)


@pytest.fixture(scope="module")
def served_model(stack: RunningStack) -> Iterator[Served]:
    name = unique("served")
    first = register_constant(stack.settings, name, 1.0)
    second = register_constant(stack.settings, name, 2.0)
    third = register_constant(stack.settings, name, 3.0, broken=True)
    with no_model_left(stack.settings, name):
        url = RayServeTarget(stack.settings).deploy(first)
        yield Served(name, url, stack.settings, (first, second, third))


@pytest.fixture
def served(served_model: Served) -> Served:
    """`served_model` in its first state."""
    served_model.target.deploy(served_model.versions[0])
    served_model.registry.promote(served_model.versions[0])
    return served_model


def test_a_switch_under_load_fails_no_request_and_mixes_no_versions(served: Served) -> None:
    with load_on(served.url, served.name) as load:
        time.sleep(1)
        for version in [1 - each % 2 for each in range(SWITCHES)]:
            served.target.deploy(served.versions[version])
            # From the moment that `deploy` returns no answer comes from the version before it.
            assert ask(served.url, served.name) == (served.versions[version].version, version + 1.0)
            time.sleep(0.5)
    assert load.errors == []
    assert len(load.answers) > 100
    assert set(load.answers) == {("1", 1.0), ("2", 2.0)}


def test_replicas_listen_on_loopback_only(stack: RunningStack, served: Served) -> None:
    """Ray Serve would open a server that unpickles what anybody sends it."""
    (replica,) = replicas_of(stack, served.name)
    listening = [each.laddr.ip for each in replica.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert listening
    assert [each for each in listening if not ipaddress.ip_address(each.removeprefix("::ffff:")).is_loopback] == []


def test_a_switch_of_two_replicas_under_load(served: Served) -> None:
    served.target.deploy(served.versions[0], replicas=2)
    with load_on(served.url, served.name) as load:
        served.target.deploy(served.versions[1], replicas=2)
        after = [ask(served.url, served.name) for _ in range(20)]
    assert load.errors == []
    assert set(load.answers) <= {("1", 1.0), ("2", 2.0)}
    assert set(after) == {("2", 2.0)}


def test_killed_replicas_cost_what_they_were_at_work_on_and_no_more(stack: RunningStack, served: Served) -> None:
    """Two replicas, one killed every 20 s. Serve's proxy answers 500 for what the dead one had not answered."""
    served.target.deploy(served.versions[0], replicas=2)
    ends = time.monotonic() + ENDURANCE_SECONDS
    memory: list[float] = []
    killed = 0
    with load_on(served.url, served.name) as load:
        time.sleep(2)
        while time.monotonic() < ends:
            replicas = replicas_of(stack, served.name)
            if len(replicas) == 2:  # on a busy machine the last one that was killed may not be back yet
                memory.append(sum(each.memory_info().rss for each in replicas) / 2e6)
                replicas[killed % 2].kill()
                killed += 1
            time.sleep(KILL_EVERY_SECONDS)
        deadline = time.monotonic() + 60
        while len(replicas_of(stack, served.name)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    print(f"{killed} replicas killed, {len(load.answers)} answers, {len(load.errors)} errors: {set(load.errors)}")
    print("MB of a replica before each was killed:", [round(each) for each in memory])
    assert len(load.answers) > 100
    assert set(load.errors) <= {"the model server answered 500: Internal Server Error"}
    assert len(load.errors) <= killed * CLIENTS
    assert max(memory) < 1.3 * memory[0]
    served.target.deploy(served.versions[0], replicas=1)


def test_a_version_that_cannot_be_loaded_leaves_the_one_before_it(served: Served) -> None:
    with load_on(served.url, served.name) as load, pytest.raises(DeploymentError, match="cannot be loaded"):
        served.target.deploy(served.versions[2])
    assert load.errors == []
    assert set(load.answers) == {("1", 1.0)}
    assert served.target.current(served.name) == "1"
    assert ask(served.url, served.name) == ("1", 1.0)
    served.target.deploy(served.versions[1])
    assert ask(served.url, served.name) == ("2", 2.0)


def test_a_first_version_that_cannot_be_loaded_is_not_left_behind(stack: RunningStack) -> None:
    name = unique("first")
    broken = register_constant(stack.settings, name, 1.0, broken=True)
    with no_model_left(stack.settings, name):
        with pytest.raises(DeploymentError, match="cannot be loaded"):
            RayServeTarget(stack.settings).deploy(broken)
        assert RayServeTarget(stack.settings).current(name) is None


def test_a_version_that_fails_verification_gives_way_to_the_champion(served: Served) -> None:
    served.target.deploy(served.versions[1])
    report = probe_classifier(served.url, served.name, ROW["input-0"], np.array([5]), 20)
    assert (report.requests, report.failed, report.versions, report.accuracy) == (20, 0, "2", 0.0)
    with pytest.raises(VerificationError, match=r"accuracy 0\.0000 .* version 1 is served again"):
        check_or_restore(served.target, served.registry, served.versions[1], report, least_accuracy=0.9)
    assert ask(served.url, served.name) == ("1", 1.0)
    assert served.registry.aliases(served.name)["champion"] == "1"
    assert "accuracy" in served.registry.tags(served.versions[1])["semr.verification"]


def test_a_failed_request_is_enough_to_fail_verification(served: Served) -> None:
    served.target.deploy(served.versions[1])
    report = ProbeReport(100, 1, 1.0, 1.0, 1.0, "2", "the model server answered 500")
    with pytest.raises(VerificationError, match="1 of 100 requests failed"):
        check_or_restore(served.target, served.registry, served.versions[1], report, least_accuracy=0.9)
    assert served.registry.aliases(served.name)["champion"] == "1"


def test_a_version_that_passes_becomes_champion(served: Served) -> None:
    served.target.deploy(served.versions[1])
    report = probe_classifier(served.url, served.name, ROW["input-0"], np.array([0]), 10)
    check_or_restore(served.target, served.registry, served.versions[1], report, least_accuracy=0.9)
    aliases = served.registry.aliases(served.name)
    assert (aliases["champion"], aliases["previous"]) == ("2", "1")


def test_two_deployers_at_once_do_not_lose_one_anothers_model(served: Served) -> None:
    names = [unique("left"), unique("right")]
    refs = [register_constant(served.settings, name, value) for name, value in zip(names, (5.0, 6.0), strict=True)]
    with no_model_left(served.settings, *names):
        with ThreadPoolExecutor(2) as pool:
            urls = list(pool.map(RayServeTarget.deploy, [RayServeTarget(served.settings) for _ in refs], refs))
        for url, name, value in zip(urls, names, (5.0, 6.0), strict=True):
            assert ask(url, name) == ("1", value)
        assert ask(served.url, served.name) == ("1", 1.0)
        RayServeTarget(served.settings).remove(names[0])
        assert ask(urls[1], names[1]) == ("1", 6.0)


def test_requests_that_do_not_fit_are_told_why(served: Served) -> None:
    with InferenceClient(served.url, served.name) as client:
        for inputs, words in (
            ({"input-0": np.zeros((1, 3), np.float32)}, "shape"),
            ({"input-0": np.zeros((1, 2), np.int64)}, "datatype"),
            ({"other": np.zeros((1, 2), np.float32)}, "inputs"),
        ):
            with pytest.raises(InferenceError, match=words) as failure:
                client.infer(inputs)
            assert failure.value.status == 400
    with InferenceClient(served.url, "other") as client, pytest.raises(InferenceError) as missing:
        client.metadata()
    assert missing.value.status == 404
