"""What every service of a stack is built from."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr, ValidationError

from semr.errors import SettingsError
from semr.settings import ENV_PREFIX, Settings
from semr.stack.ports import LOOPBACK
from semr.stack.processes import STACK_VARIABLE
from semr.stack.state import Identity, StackOptions, StateFolder

# Settings of the caller's shell that would lead the servers to another installation.
_FOREIGN_PREFIXES = (ENV_PREFIX, "AWS_", "MLFLOW_", "_MLFLOW_", "MINIO_")
_FOREIGN_NAMES = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_DASHBOARD_ADDRESS",
    "RAY_TMPDIR",
)


@dataclass(frozen=True)
class StackContext:
    """One stack's folder, identity, options, ports by request name, and the contract made of them."""

    folder: StateFolder
    identity: Identity
    options: StackOptions
    ports: Mapping[str, int]
    settings: Settings

    @property
    def runtime(self) -> Path:
        """Folder for sockets and temporary files; gone after `down`."""
        return Path(self.identity.runtime)

    def base_environment(self) -> dict[str, str]:
        """Environment of every server: the caller's, without what points elsewhere, marked as this stack's."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_FOREIGN_PREFIXES) and name not in _FOREIGN_NAMES
        }
        programs = str(Path(sys.executable).parent)
        temporary = self.runtime / "tmp"
        return {
            **kept,
            STACK_VARIABLE: self.identity.stack_id,
            # "python" in a Ray job's entry point is then the interpreter that has SEMR.
            "PATH": os.pathsep.join([programs, kept.get("PATH", os.defpath)]),
            "TMPDIR": str(temporary),
            "NO_PROXY": _with_loopback(kept.get("NO_PROXY", "")),
            "no_proxy": _with_loopback(kept.get("no_proxy", "")),
            "DO_NOT_TRACK": "true",
            "PYTHONUNBUFFERED": "1",
        }


def stack_settings(identity: Identity, ports: Mapping[str, int]) -> Settings:
    """The contract of a stack; bucket names and what the stack does not run come from the caller's environment.

    Args:
        identity: the stack's credentials.
        ports: port by request name, as the services ask for them.

    Raises:
        SettingsError: a variable of the caller's environment cannot be used.
    """
    try:
        return _stack_settings(identity, ports)
    except ValidationError as error:
        names = ", ".join(ENV_PREFIX + str(detail["loc"][0]).upper() for detail in error.errors() if detail["loc"])
        raise SettingsError(f"{names} in the environment cannot be used: unset it.") from error


def _stack_settings(identity: Identity, ports: Mapping[str, int]) -> Settings:
    return Settings(
        object_store_endpoint=f"http://{LOOPBACK}:{ports['object-store']}",
        object_store_access_key=identity.access_key,
        object_store_secret_key=SecretStr(identity.secret_key),
        mlflow_uri=f"http://{LOOPBACK}:{ports['mlflow']}",
        ray_dashboard_url=f"http://{LOOPBACK}:{ports['ray-dashboard']}",
        ray_auth_token=SecretStr(identity.ray_token),
        serve_url=f"http://{LOOPBACK}:{ports['ray-serve']}",
        prometheus_url=f"http://{LOOPBACK}:{ports['prometheus']}",
        alertmanager_url=f"http://{LOOPBACK}:{ports['alertmanager']}",
        evolution_url=f"http://{LOOPBACK}:{ports['evolution']}",
        evolution_token=SecretStr(identity.evolution_token),
    )


def find_program(*names: str) -> str | None:
    """Path of the first of `names` that is installed: beside the running interpreter (its virtual environment may not be
    activated), else on PATH."""
    for name in names:
        path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
        if path is not None:
            return path
    return None


def _with_loopback(hosts: str) -> str:
    return ",".join(dict.fromkeys([*filter(None, hosts.split(",")), LOOPBACK, "localhost"]))
