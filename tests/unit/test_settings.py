"""The contract: where values come from, what is said when one is missing, and that secrets stay out of sight."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from semr.errors import InvalidInputError, SettingsError
from semr.settings import ENV_FILE_VARIABLE, ENV_PREFIX, Settings, find_env_file, get_settings, load_settings

COMPLETE = {
    "SEMR_OBJECT_STORE_ENDPOINT": "http://127.0.0.1:8333",
    "SEMR_OBJECT_STORE_REGION": "eu-north-1",
    "SEMR_OBJECT_STORE_ACCESS_KEY": "the-access-key",
    "SEMR_OBJECT_STORE_SECRET_KEY": "the-secret-key",
    "SEMR_DATASETS_BUCKET": "data",
    "SEMR_CHECKPOINTS_BUCKET": "checkpoints",
    "SEMR_ARTIFACTS_BUCKET": "artifacts",
    "SEMR_MLFLOW_URI": "http://127.0.0.1:5000",
    "SEMR_RAY_DASHBOARD_URL": "http://127.0.0.1:8265",
    "SEMR_RAY_AUTH_TOKEN": "the-ray-token",
    "SEMR_SERVE_URL": "http://127.0.0.1:8000",
    "SEMR_SERVE_API_URL": "http://127.0.0.1:8266",
    "SEMR_RAY_SERVICE": "ml/serving",
    "SEMR_PROMETHEUS_URL": "http://127.0.0.1:9090",
    "SEMR_ALERTMANAGER_URL": "http://127.0.0.1:9093",
    "SEMR_EVOLUTION_URL": "http://127.0.0.1:8500",
    "SEMR_EVOLUTION_TOKEN": "the-evolution-token",
    "SEMR_FLYTE_ENDPOINT": "localhost:30080",
    "SEMR_FLYTE_PROJECT": "semr",
    "SEMR_FLYTE_DOMAIN": "production",
    "SEMR_DEPLOYMENT_TARGET": "helm",
    "SEMR_HELM_VALUES": '{"contract": {"configMap": "semr-contract"}}',
}


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting from the machine that runs the tests, neither from its environment nor from a folder above."""
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def env_file(path: Path, **pairs: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}={value}\n" for name, value in pairs.items()))
    return path


def test_defaults_know_no_service() -> None:
    settings = load_settings()
    assert settings.mlflow_uri is None and settings.object_store_endpoint is None
    assert settings.datasets_bucket == "semr-datasets" and settings.deployment_target == "ray_serve"


def test_every_field_is_a_variable_of_the_contract() -> None:
    assert {Settings.variable(field) for field in Settings.model_fields} == set(COMPLETE)
    with pytest.raises(KeyError, match="nonsense"):
        Settings.variable("nonsense")


def test_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = env_file(tmp_path / "env", SEMR_MLFLOW_URI="http://file:1", SEMR_SERVE_URL="http://file:2")
    monkeypatch.setenv("SEMR_MLFLOW_URI", "http://environment:1")
    settings = load_settings(path)
    assert (settings.mlflow_uri, settings.serve_url) == ("http://environment:1", "http://file:2")


def test_named_file_goes_before_the_nearest_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env_file(tmp_path / ".semr/env", SEMR_MLFLOW_URI="http://nearest:1")
    assert load_settings().mlflow_uri == "http://nearest:1"
    named = env_file(tmp_path / "named.env", SEMR_MLFLOW_URI="http://named:1")
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(named))
    assert load_settings().mlflow_uri == "http://named:1"


def test_the_nearest_file_at_or_above_the_folder_is_found(tmp_path: Path) -> None:
    deep = tmp_path / "a/b/c"
    deep.mkdir(parents=True)
    assert find_env_file(deep) is None
    top = env_file(tmp_path / ".semr/env")
    assert find_env_file(deep) == top
    nearer = env_file(tmp_path / "a/b/.semr/env")
    assert find_env_file(deep) == nearer
    (deep / ".semr/env").mkdir(parents=True)
    assert find_env_file(deep) == nearer, "a folder of that name is not a file"
    assert find_env_file() == top, "by default from the working directory"


def test_named_file_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(SettingsError, match=r"SEMR_ENV_FILE names .*nothing, which is not a file"):
        load_settings()


def test_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMR_MLFLOW_URI", "")
    monkeypatch.setenv("SEMR_DATASETS_BUCKET", "")
    assert load_settings().mlflow_uri is None
    assert load_settings().datasets_bucket == "semr-datasets"


def test_need_tells_how_to_set_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"SEMR_MLFLOW_URI is not set: .*`semr up`.*SEMR_ENV_FILE") as caught:
        load_settings().need("mlflow_uri")
    assert isinstance(caught.value, InvalidInputError) and caught.value.exit_code == 2
    monkeypatch.setenv("SEMR_MLFLOW_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("SEMR_OBJECT_STORE_SECRET_KEY", "the-secret-key")
    assert load_settings().need("mlflow_uri") == "http://127.0.0.1:5000"
    assert load_settings().need("object_store_secret_key") == "the-secret-key"


@pytest.mark.parametrize(
    "field",
    [
        field
        for field in Settings.model_fields
        if field.endswith(("_url", "_uri")) or field.startswith("object_store_e")
    ],
)
def test_urls_are_checked_and_lose_their_trailing_slash(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    variable = Settings.variable(field)
    monkeypatch.setenv(variable, "https://host:1/path/")
    assert getattr(load_settings(), field) == "https://host:1/path"
    for wrong in ("host:1", "ftp://host", "//host"):
        monkeypatch.setenv(variable, wrong)
        with pytest.raises(SettingsError, match=rf"^{variable} cannot be used: .*{wrong}.* http://") as caught:
            load_settings()
        assert "\n" not in str(caught.value)


def test_other_wrong_values_name_their_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMR_DEPLOYMENT_TARGET", "mainframe")
    with pytest.raises(SettingsError, match=r"^SEMR_DEPLOYMENT_TARGET cannot be used"):
        load_settings()
    monkeypatch.delenv("SEMR_DEPLOYMENT_TARGET")
    for wrong, words in (("image: x", "is not JSON"), ("[1]", "is not a JSON object of values")):
        monkeypatch.setenv("SEMR_HELM_VALUES", wrong)
        with pytest.raises(SettingsError, match=rf"^SEMR_HELM_VALUES cannot be used: .*{words}"):
            load_settings()


def test_unknown_variables_are_ignored(tmp_path: Path) -> None:
    assert load_settings(env_file(tmp_path / "env", SEMR_FUTURE="1", PATH="/x")).mlflow_uri is None


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    settings = load_settings(env_file(tmp_path / "env", **COMPLETE))
    for text in (repr(settings), str(settings), f"{settings.model_dump()}", settings.model_dump_json()):
        for secret in ("the-secret-key", "the-ray-token", "the-evolution-token"):
            assert secret not in text


def test_contract_gives_back_what_filled_it(tmp_path: Path) -> None:
    assert load_settings(env_file(tmp_path / "env", **COMPLETE)).contract() == COMPLETE
    assert "SEMR_MLFLOW_URI" not in load_settings().contract()


def test_secret_variables_are_part_of_the_contract() -> None:
    assert set(Settings.secret_variables()) == {
        "SEMR_OBJECT_STORE_ACCESS_KEY",
        "SEMR_OBJECT_STORE_SECRET_KEY",
        "SEMR_RAY_AUTH_TOKEN",
        "SEMR_EVOLUTION_TOKEN",
    }


def test_client_environment_speaks_the_clients_languages(tmp_path: Path) -> None:
    assert load_settings(env_file(tmp_path / "env", **COMPLETE)).client_environment() == {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:8333",
        "AWS_ACCESS_KEY_ID": "the-access-key",
        "AWS_SECRET_ACCESS_KEY": "the-secret-key",
        "AWS_DEFAULT_REGION": "eu-north-1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "the-ray-token",
    }


def test_client_environment_without_services_still_settles_rays_mode() -> None:
    assert load_settings().client_environment() == {"RAY_AUTH_MODE": "disabled"}


def test_client_environment_needs_the_keys_of_the_store(tmp_path: Path) -> None:
    path = env_file(tmp_path / "env", SEMR_OBJECT_STORE_ENDPOINT="http://127.0.0.1:8333")
    with pytest.raises(SettingsError, match="SEMR_OBJECT_STORE_ACCESS_KEY"):
        load_settings(path).client_environment()


def test_settings_are_read_once_and_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    get_settings.cache_clear()
    try:
        first = get_settings()
        monkeypatch.setenv("SEMR_MLFLOW_URI", "http://later:1")
        assert get_settings() is first and first.mlflow_uri is None
        get_settings.cache_clear()
        assert get_settings().mlflow_uri == "http://later:1"
        with pytest.raises(ValidationError, match="frozen"):
            first.mlflow_uri = "http://other:1"
    finally:
        get_settings.cache_clear()
