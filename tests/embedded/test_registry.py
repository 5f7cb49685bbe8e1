"""The registry on a real MLflow server, also when that server is away in the middle of a registration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from faulty_proxy import Cut, FaultyProxy
from stack_tools import RunningStack
from workflow_tools import log_constant, unique

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.registry import ModelNotFoundError, Registry, RegistryError
from semr.settings import Settings


@pytest.fixture(scope="module")
def run(stack: RunningStack) -> str:
    return log_constant(stack.settings, 1.0)


@pytest.fixture(scope="module")
def other_run(stack: RunningStack) -> str:
    return log_constant(stack.settings, 2.0)


@pytest.fixture
def proxy(stack: RunningStack) -> Iterator[FaultyProxy]:
    with FaultyProxy(stack.settings.need("mlflow_uri")) as proxy:
        yield proxy


@pytest.fixture
def behind_proxy(stack: RunningStack, proxy: FaultyProxy) -> Registry:
    return Registry(stack.settings.model_copy(update={"mlflow_uri": proxy.url}))


def test_a_run_becomes_one_version_with_lineage_and_alias(stack: RunningStack, run: str) -> None:
    registry, name = Registry(stack.settings), unique("one")
    ref = registry.register(run, name, tags={"semr.trigger": "human"})
    assert (ref.name, ref.version, ref.run_id, ref.uri) == (name, "1", run, f"models:/{name}/1")
    assert ref.metrics == {"holdout_accuracy": 1.0}
    assert registry.tags(ref) == {"semr.trigger": "human"}
    assert registry.register(run, name) == ref
    assert registry.versions(name) == [ref]
    assert registry.aliases(name) == {"challenger": "1"}


def test_aliases_move_and_come_back(stack: RunningStack, run: str, other_run: str) -> None:
    registry, name = Registry(stack.settings), unique("aliases")
    first, second = registry.register(run, name), registry.register(other_run, name)
    assert registry.promote(first) is None
    assert registry.promote(second) == first
    assert registry.promote(second) is None
    assert registry.aliases(name) == {"champion": "2", "previous": "1"}
    assert registry.roll_back(name) == first
    assert registry.aliases(name) == {"champion": "1", "previous": "2"}
    assert registry.find(name, "challenger") is None


def test_what_is_not_there_is_named(stack: RunningStack, run: str) -> None:
    registry, name = Registry(stack.settings), unique("absent")
    with pytest.raises(ModelNotFoundError, match="no MLflow run"):
        registry.register("0" * 32, name)
    with pytest.raises(ModelNotFoundError, match=name):
        registry.get(name, "champion")
    with pytest.raises(ModelNotFoundError, match=name):
        registry.aliases(name)
    with pytest.raises(InvalidInputError, match="cannot name a model"):
        registry.register(run, "a/b")
    assert registry.versions(name) == []


def test_a_run_without_a_model_is_not_registered(stack: RunningStack) -> None:
    from semr import tracking

    client = tracking.connect(stack.settings)
    empty = client.create_run(tracking.experiment_id(client, "tests")).info.run_id
    with pytest.raises(RegistryError, match="logged no model"):
        Registry(stack.settings).register(empty, unique("empty"))


def test_two_who_register_at_once_make_two_versions(stack: RunningStack, run: str, other_run: str) -> None:
    name = unique("both")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Registry(stack.settings).register, (run, other_run), (name, name)))
    versions = Registry(stack.settings).versions(name)
    assert [version.version for version in versions] == ["1", "2"]
    assert {version.run_id for version in versions} == {run, other_run}


def test_mlflow_that_is_down_is_named_soon_and_a_rerun_completes(
    stack: RunningStack, proxy: FaultyProxy, behind_proxy: Registry, run: str
) -> None:
    name = unique("down")
    proxy.refuse()
    started = time.monotonic()
    with pytest.raises(DependencyUnavailableError, match=f"MLflow at {proxy.url}"):
        behind_proxy.register(run, name)
    assert time.monotonic() - started < 45
    assert Registry(stack.settings).versions(name) == []
    proxy.heal()
    assert behind_proxy.register(run, name).version == "1"


def test_mlflow_that_hangs_is_named(
    monkeypatch: pytest.MonkeyPatch, stack: RunningStack, proxy: FaultyProxy, behind_proxy: Registry, run: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    name = unique("hang")
    proxy.fail("hang")
    with pytest.raises(DependencyUnavailableError, match="MLflow"):
        behind_proxy.register(run, name)
    assert Registry(stack.settings).versions(name) == []


@pytest.mark.parametrize("cut", ["request", "reply"])
@pytest.mark.parametrize("step", ["registered-models/create", "model-versions/create", "registered-models/alias"])
def test_a_connection_lost_once_is_mended_without_a_trace(
    proxy: FaultyProxy, behind_proxy: Registry, run: str, step: str, cut: Cut
) -> None:
    name = unique("blip")
    proxy.cut_at(step.encode(), cut)
    assert behind_proxy.register(run, name, tags={"a": "b"}).version == "1"
    assert proxy.cuts == 1
    assert [behind_proxy.tags(ref) for ref in behind_proxy.versions(name)] == [{"a": "b"}]
    assert behind_proxy.aliases(name) == {"challenger": "1"}


@pytest.mark.parametrize("step", ["registered-models/create", "model-versions/create", "registered-models/alias"])
def test_mlflow_that_dies_at_any_step_leaves_no_half_version(
    stack: RunningStack, proxy: FaultyProxy, behind_proxy: Registry, run: str, step: str
) -> None:
    name, direct = unique("dies"), Registry(stack.settings)
    proxy.cut_at(step.encode(), "request", times=20)
    with pytest.raises(DependencyUnavailableError, match="MLflow"):
        behind_proxy.register(run, name, tags={"a": "b"})
    # What is visible is whole: no version, or one with all of its tags.
    assert [direct.tags(ref) for ref in direct.versions(name)] in ([], [{"a": "b"}])
    proxy.heal()
    assert behind_proxy.register(run, name, tags={"a": "b"}).version == "1"
    assert [direct.tags(ref) for ref in direct.versions(name)] == [{"a": "b"}]
    assert direct.aliases(name) == {"challenger": "1"}


def test_settings_without_mlflow_say_how_to_get_it() -> None:
    with pytest.raises(InvalidInputError, match="SEMR_MLFLOW_URI"):
        Registry(Settings(mlflow_uri=None)).versions("any")
