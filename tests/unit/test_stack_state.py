from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from semr.settings import Settings, load_settings
from semr.stack.context import StackContext, stack_settings
from semr.stack.contract_file import read_contract, write_contract
from semr.stack.errors import StackFolderError
from semr.stack.state import (
    StackOptions,
    StateFolder,
    default_folder,
    load_or_create_identity,
    read_identity,
    read_json,
    read_options,
    write_options,
    write_private,
)

PORTS = {
    "object-store": 1,
    "mlflow": 2,
    "ray-dashboard": 3,
    "ray-serve": 4,
    "prometheus": 5,
    "alertmanager": 6,
    "evolution": 7,
}


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder.at(tmp_path / ".semr")
    folder.prepare()
    return folder


def test_prepared_folder_is_private(folder: StateFolder) -> None:
    for path in (folder.root, folder.config, folder.logs):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_prepare_again_changes_nothing(folder: StateFolder) -> None:
    identity = load_or_create_identity(folder)
    folder.prepare()
    assert load_or_create_identity(folder) == identity


@pytest.mark.parametrize("place", ["/proc/semr-test", "/dev/null/semr-test"])
def test_folder_that_cannot_be_made(place: str) -> None:
    with pytest.raises(StackFolderError, match="--dir") as failure:
        StateFolder.at(Path(place)).prepare()
    assert failure.value.exit_code == 2


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StackFolderError, match="neither empty"):
        StateFolder.at(tmp_path).prepare()


def test_start_that_was_cut_short_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("config", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / ".identity.json.x1").touch()
    StateFolder.at(tmp_path).prepare()


def test_private_file_is_replaced_whole(folder: StateFolder) -> None:
    path = folder.root / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\ud800")
    assert path.read_text() == "new"
    assert [entry.name for entry in folder.root.iterdir() if "secret" in entry.name] == ["secret"]


@pytest.mark.parametrize("text", ["", '{"half": ', "[1]", "\x00\x00"])
def test_half_a_file_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert read_json(tmp_path / "file") is None
    assert read_json(tmp_path / "none") is None


def test_credentials_are_random(tmp_path: Path) -> None:
    identities = []
    for name in ("a", "b"):
        folder = StateFolder.at(tmp_path / name)
        folder.prepare()
        identities.append(load_or_create_identity(folder))
    for key in ("stack_id", "access_key", "secret_key", "ray_token", "runtime"):
        assert getattr(identities[0], key) != getattr(identities[1], key)


def test_identity_stays(folder: StateFolder) -> None:
    assert load_or_create_identity(folder) == load_or_create_identity(folder) == read_identity(folder)
    assert stat.S_IMODE(folder.identity_file.stat().st_mode) == 0o600


def test_copied_folder_is_another_stack_with_the_same_credentials(folder: StateFolder) -> None:
    identity = load_or_create_identity(folder)
    copy = folder.root.with_name("copy")
    shutil.copytree(folder.root, copy)
    other = load_or_create_identity(StateFolder.at(copy))
    assert other.stack_id != identity.stack_id
    assert other.runtime != identity.runtime
    assert other.secret_key == identity.secret_key  # the copied data are locked with it


def test_runtime_folder_is_short_wherever_the_temporary_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("deep" * 20)))
    folder = StateFolder.at(tmp_path / "s")
    folder.prepare()
    socket = "ray/session_2026-11-23_03-28-21_678789_4194304/sockets/dash_MetricsHead"
    assert len(os.path.join(load_or_create_identity(folder).runtime, socket)) <= 103  # noqa: PTH118


def test_options_keep_what_was_recorded(folder: StateFolder) -> None:
    assert read_options(folder) == StackOptions()
    write_options(folder, StackOptions(mlflow_backend_uri="sqlite:///x", ray_cpus=3))
    wanted = StackOptions(ray_cpus=5).over(read_options(folder))
    assert wanted == StackOptions(mlflow_backend_uri="sqlite:///x", ray_cpus=5)


def test_default_folder_is_the_nearest(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    below = folder.root.parent / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert default_folder() == below / ".semr"
    load_or_create_identity(folder)
    assert default_folder() == folder.root


def test_contract_is_the_stack_s_whatever_the_environment_says(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stack_settings(load_or_create_identity(folder), PORTS)
    write_contract(folder, settings)
    assert stat.S_IMODE(folder.env_file.stat().st_mode) == 0o600
    assert load_settings(folder.env_file) == settings
    monkeypatch.setenv("SEMR_MLFLOW_URI", "http://elsewhere:1")
    assert read_contract(folder) == settings
    assert read_contract(folder).mlflow_uri == "http://127.0.0.1:2"


def test_bucket_names_come_from_the_environment(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMR_DATASETS_BUCKET", "mine")
    monkeypatch.setenv("SEMR_MLFLOW_URI", "http://elsewhere:1")
    settings = stack_settings(load_or_create_identity(folder), PORTS)
    assert settings.datasets_bucket == "mine"
    assert settings.mlflow_uri == "http://127.0.0.1:2"


def test_servers_see_nothing_of_another_installation(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {
        "AWS_PROFILE": "work",
        "AWS_ACCESS_KEY_ID": "x",
        "MLFLOW_TRACKING_URI": "http://elsewhere:1",
        "RAY_ADDRESS": "elsewhere:1",
        "SEMR_MLFLOW_URI": "http://elsewhere:1",
    }
    for name, value in {**foreign, "HTTP_PROXY": "http://proxy:1", "NO_PROXY": "example.org"}.items():
        monkeypatch.setenv(name, value)
    identity = load_or_create_identity(folder)
    context = StackContext(folder, identity, StackOptions(), PORTS, Settings())
    environment = context.base_environment()
    assert not set(foreign) & set(environment)
    assert environment["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert environment["SEMR_STACK_ID"] == identity.stack_id


def test_identity_file_is_json_of_strings(folder: StateFolder) -> None:
    load_or_create_identity(folder)
    assert all(isinstance(value, str) for value in json.loads(folder.identity_file.read_text()).values())


def test_a_folder_from_before_the_evolution_service_gets_a_token_and_keeps_the_rest(folder: StateFolder) -> None:
    before = load_or_create_identity(folder)
    recorded = json.loads(folder.identity_file.read_text())
    del recorded["evolution_token"]
    folder.identity_file.write_text(json.dumps(recorded))
    old = read_identity(folder)
    assert old is not None
    assert old.evolution_token == ""
    after = load_or_create_identity(folder)
    assert len(after.evolution_token) == 64
    assert dataclasses.replace(after, evolution_token=before.evolution_token) == before
    assert load_or_create_identity(folder) == after
