"""The contract: the only place that knows where SEMR's services are and with which credentials they are reached.

Every key is an environment variable `SEMR_<FIELD>`. The embedded stack writes them to `.semr/env`, the SEMR chart puts them
into a ConfigMap and a Secret with the same keys, and a person may give a file of `KEY=value` lines. Precedence, highest
first: process environment, the file named by `SEMR_ENV_FILE`, the nearest `.semr/env` in the working directory or above it.

This is the ground floor: it imports nothing of SEMR but its errors.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from semr.errors import SettingsError

ENV_PREFIX = "SEMR_"
ENV_FILE_VARIABLE = "SEMR_ENV_FILE"
STATE_FOLDER_NAME = ".semr"
ENV_FILE_NAME = "env"

_URL_FIELDS = (
    "object_store_endpoint",
    "mlflow_uri",
    "ray_dashboard_url",
    "serve_url",
    "serve_api_url",
    "prometheus_url",
    "alertmanager_url",
    "evolution_url",
)


class Settings(BaseSettings):
    """Endpoints and credentials of one SEMR installation. URLs carry no trailing slash.

    A field that is None is a service that this installation does not have; `need` turns that into a clear error where the
    service is required.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    object_store_endpoint: str | None = None
    object_store_region: str = "us-east-1"
    object_store_access_key: str | None = None
    object_store_secret_key: SecretStr | None = None
    datasets_bucket: str = "semr-datasets"
    checkpoints_bucket: str = "semr-checkpoints"
    artifacts_bucket: str = "semr-artifacts"
    mlflow_uri: str | None = None
    ray_dashboard_url: str | None = None
    ray_auth_token: SecretStr | None = None
    serve_url: str | None = None
    # Dashboard with Serve's REST API, when that of the Jobs API has none: on a cluster, serving has a Ray cluster of its own.
    serve_api_url: str | None = None
    # `namespace/name` of the RayService that keeps Serve's applications, when there is one.
    ray_service: str | None = None
    prometheus_url: str | None = None
    alertmanager_url: str | None = None
    evolution_url: str | None = None
    evolution_token: SecretStr | None = None
    flyte_endpoint: str | None = None
    flyte_project: str = "flytesnacks"
    flyte_domain: str = "development"
    deployment_target: Literal["ray_serve", "helm"] = "ray_serve"
    # JSON object: values of the chart semr-inference that the target helm gives every model's release.
    helm_values: str | None = None

    @field_validator(*_URL_FIELDS)
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not a URL that starts with http:// or https://")
        return value.rstrip("/")

    @field_validator("ray_service")
    @classmethod
    def _check_ray_service(cls, value: str | None) -> str | None:
        if value is not None and len([part for part in value.split("/") if part]) != 2:
            raise ValueError(f"{value!r} is not of the form namespace/name")
        return value

    @field_validator("helm_values")
    @classmethod
    def _check_helm_values(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                content = json.loads(value)
            except ValueError as error:
                raise ValueError(f"{value!r} is not JSON: {error}") from error
            if not isinstance(content, dict):
                raise ValueError(f"{value!r} is not a JSON object of values")
        return value

    @classmethod
    def variable(cls, field: str) -> str:
        """Name of the environment variable that fills `field`."""
        if field not in cls.model_fields:
            raise KeyError(f"{field} is not a field of the contract")
        return ENV_PREFIX + field.upper()

    @classmethod
    def secret_variables(cls) -> tuple[str, ...]:
        """Names of the variables that hold credentials; a chart keeps these in its Secret, the rest in its ConfigMap."""
        fields = ("object_store_access_key", "object_store_secret_key", "ray_auth_token", "evolution_token")
        return tuple(cls.variable(field) for field in fields)

    def need(self, field: str) -> str:
        """Value of `field`, or a `SettingsError` that tells how to set it when it is missing."""
        value = getattr(self, field)
        if value is None:
            raise SettingsError(
                f"{self.variable(field)} is not set: start the embedded stack with `semr up` in this folder, "
                f"or name a file with the settings of an existing installation in {ENV_FILE_VARIABLE}."
            )
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)

    def contract(self) -> dict[str, str]:
        """The contract as environment variables, credentials in clear; fields that are None are left out."""
        pairs: dict[str, str] = {}
        for field in type(self).model_fields:
            if getattr(self, field) is not None:
                pairs[self.variable(field)] = self.need(field)
        return pairs

    def client_environment(self) -> dict[str, str]:
        """Variables that the clients of MLflow, S3 and Ray read by themselves, derived from the contract."""
        pairs: dict[str, str] = {}
        if self.mlflow_uri is not None:
            pairs["MLFLOW_TRACKING_URI"] = self.mlflow_uri
        if self.object_store_endpoint is not None:
            pairs["AWS_ENDPOINT_URL_S3"] = self.object_store_endpoint
            pairs["AWS_ACCESS_KEY_ID"] = self.need("object_store_access_key")
            pairs["AWS_SECRET_ACCESS_KEY"] = self.need("object_store_secret_key")
            pairs["AWS_DEFAULT_REGION"] = self.object_store_region
        # Set the mode explicitly: a token file in the home folder would switch authentication on by itself.
        pairs["RAY_AUTH_MODE"] = "disabled" if self.ray_auth_token is None else "token"
        if self.ray_auth_token is not None:
            pairs["RAY_AUTH_TOKEN"] = self.ray_auth_token.get_secret_value()
        return pairs


def find_env_file(start: Path | None = None) -> Path | None:
    """The file that fills the contract: `SEMR_ENV_FILE`, else the nearest `.semr/env` at or above `start` (default: here).

    Raises:
        SettingsError: `SEMR_ENV_FILE` names a file that cannot be read.
    """
    named = os.environ.get(ENV_FILE_VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise SettingsError(f"{ENV_FILE_VARIABLE} names {named}, which is not a file.")
        return path
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        candidate = folder / STATE_FOLDER_NAME / ENV_FILE_NAME
        if candidate.is_file() and os.access(candidate, os.R_OK):
            return candidate
    return None


def load_settings(env_file: Path | None = None) -> Settings:
    """Read the contract afresh from the environment and `env_file` (default: `find_env_file()`).

    Raises:
        SettingsError: a value cannot be used; the message names the variable.
    """
    path = env_file if env_file is not None else find_env_file()
    try:
        return Settings(_env_file=path)  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = ENV_PREFIX + str(first["loc"][0]).upper() if first["loc"] else "the settings"
        raise SettingsError(f"{name} cannot be used: {first['msg']}.") from error


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once; `get_settings.cache_clear()` makes the next call read again."""
    return load_settings()
