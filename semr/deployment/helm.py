"""Deployment target helm: one release of the chart semr-inference a model, told what to serve by `helm upgrade`.

Helm waits until the new pods answer their readiness probe and takes the release back by itself when they do not. The history
stays, so that a person can roll back too. A helm that is killed leaves its release locked, and every later one refuses to
touch it; such a lock is waited for and then taken away.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from semr.deployment.target import DeploymentError
from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.package_data import package_data
from semr.registry import ModelVersionRef
from semr.settings import Settings, get_settings

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PORT = 8080
_HISTORY = 10
# Helm's own work before and after the wait.
_SLACK_SECONDS = 60.0
_POLL_SECONDS = 2.0


def inference_chart() -> Path:
    """The chart SEMR_inference that comes with this version of SEMR.

    Raises:
        MissingFileError: it is not installed.
    """
    return package_data("charts/SEMR_inference", "helm_charts/SEMR_inference")


@dataclass(frozen=True)
class _Release:
    """What Helm knows of a release.

    Attributes:
        status: as `deployed`, `failed`, or `pending-upgrade` while a helm is at work on it.
        changed: seconds since the epoch.
        values: those that it was given, without the chart's defaults.
    """

    status: str
    changed: float
    values: dict[str, Any]

    @property
    def is_busy(self) -> bool:
        return self.status.startswith("pending-") or self.status == "uninstalling"

    def canary_is(self, version: str) -> bool:
        canary = self.values.get("canary") or {}
        return bool(canary.get("enabled")) and str(canary.get("version")) == version


@dataclass
class HelmTarget:
    """Releases in one namespace; see `semr.deployment.target.DeploymentTarget`.

    A release that is there keeps its values, but for what is served, replicas, MLflow's URL, and the values that the contract
    has for all of them (`SEMR_HELM_VALUES`).

    Attributes:
        chart: folder, or reference that helm understands.
        namespace: of the releases; default: that of this pod, else helm's own.
        program: the helm command.
    """

    settings: Settings = field(default_factory=get_settings)
    chart: str = field(default_factory=lambda: str(inference_chart()))
    namespace: str = ""
    program: str = "helm"

    def __post_init__(self) -> None:
        if not self.namespace and _NAMESPACE_FILE.is_file():
            self.namespace = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()

    def deploy(self, ref: ModelVersionRef, *, replicas: int | None = None, timeout_seconds: float = 180.0) -> str:
        """See `DeploymentTarget.deploy`."""
        release = release_name(ref.name)
        there = self._settled(release, timeout_seconds)
        arguments = [
            "upgrade",
            release,
            self.chart,
            "--install",
            "--reset-then-reuse-values",
            "--values=-",
            f"--set-string=model.name={ref.name}",
            f"--set-string=model.version={ref.version}",
            # A person may have had it serve an alias.
            "--set-string=model.alias=",
            "--set=model.follow=false",
            # The canary has won: it is what all pods serve now.
            *(["--set=canary.enabled=false"] if there is not None and there.canary_is(ref.version) else []),
            # Else the number that the release has, or the chart's default at first.
            *([] if replicas is None else [f"--set=replicas={replicas}"]),
            f"--set-string=mlflow.url={self.settings.need('mlflow_uri')}",
            "--wait",
            f"--timeout={max(1, round(timeout_seconds))}s",
            f"--history-max={_HISTORY}",
            *self._overriding,
            "--rollback-on-failure" if self._major >= 4 else "--atomic",
        ]
        done = self._run(arguments, self._longest(timeout_seconds), given=self.settings.helm_values or "{}")
        if done.returncode != 0:
            raise DeploymentError(f"{ref.uri} is not served, release {release} is as it was: {_reason(done.stderr)}")
        return self.url(ref.name)

    def current(self, model: str) -> str | None:
        """See `DeploymentTarget.current`."""
        values = self._ask("get", "values", release_name(model), "--all") or {}
        version = values.get("model", {}).get("version")
        return str(version) if version else None

    def url(self, model: str) -> str:
        """See `DeploymentTarget.url`."""
        host = release_name(model) + (f".{self.namespace}.svc" if self.namespace else "")
        return f"http://{host}:{_PORT}"

    def remove(self, model: str) -> None:
        """See `DeploymentTarget.remove`."""
        done = self._uninstall(release_name(model))
        if done.returncode != 0:
            raise self._unavailable(done)

    def roll_back(self, model: str, timeout_seconds: float = 180.0) -> None:
        """Serve what the release before the last one served.

        Raises:
            DeploymentError: there is none, or its pods do not become ready.
        """
        arguments = ["rollback", release_name(model), "--wait", f"--timeout={max(1, round(timeout_seconds))}s"]
        done = self._run([*arguments, *self._overriding], timeout_seconds + _SLACK_SECONDS)
        if done.returncode != 0:
            raise DeploymentError(f"Release {release_name(model)} cannot be rolled back: {_reason(done.stderr)}")

    @staticmethod
    def _longest(timeout_seconds: float) -> float:
        """Seconds that an upgrade takes at most: it waits, and waits again when it takes itself back."""
        return timeout_seconds * 2 + _SLACK_SECONDS

    def _settled(self, release: str, timeout_seconds: float) -> _Release | None:
        """The release when no helm is at work on it, None if there is none.

        Another one at work is waited for. One that has been at work for longer than an upgrade takes was killed: the release
        is what it was before that one then.

        Raises:
            DeploymentError: others keep it busy.
        """
        longest = self._longest(timeout_seconds)
        first = found = self._look(release)
        since = time.monotonic()
        while found is not None and found.is_busy:
            waited = time.monotonic() - since
            if found == first and max(waited, time.time() - found.changed) > longest:
                self._unlock(release)
                return self._look(release)
            if waited > longest:
                raise DeploymentError(
                    f"Release {release} is {found.status} by another helm, again and again: try later."
                )
            time.sleep(_POLL_SECONDS)
            found = self._look(release)
        return found

    def _look(self, release: str) -> _Release | None:
        said = self._ask("status", release)
        if said is None:
            return None
        return _Release(said["info"]["status"], _seconds(said["info"]["last_deployed"]), said.get("config") or {})

    def _unlock(self, release: str) -> None:
        """Go back to what was last deployed, or to nothing if nothing ever was."""
        revisions = self._ask("history", release) or []
        good = [each["revision"] for each in revisions if each["status"] in ("deployed", "superseded")]
        if good and revisions[-1]["status"] != "uninstalling":
            # Without waiting: an upgrade follows, which does.
            done = self._run(["rollback", release, str(max(good)), *self._overriding])
        else:
            done = self._uninstall(release)
        if done.returncode != 0:
            raise DeploymentError(
                f"Release {release} was left locked by a helm that was killed, and cannot be taken back: "
                f"{_reason(done.stderr)}"
            )

    def _uninstall(self, release: str) -> subprocess.CompletedProcess[str]:
        return self._run(["uninstall", release, "--ignore-not-found", "--wait"], 300.0)

    def _ask(self, *arguments: str) -> Any:  # noqa: ANN401 - any JSON
        """What helm tells about a release, None if there is none.

        Raises:
            DependencyUnavailableError: it cannot tell.
        """
        done = self._run([*arguments, "--output=json"])
        if done.returncode == 0:
            return json.loads(done.stdout)
        if "not found" in done.stderr:
            return None
        raise self._unavailable(done)

    def _unavailable(self, done: subprocess.CompletedProcess[str]) -> DependencyUnavailableError:
        return DependencyUnavailableError("helm", self.namespace or "the current namespace", _reason(done.stderr))

    @property
    def _overriding(self) -> list[str]:
        """Fields that others have changed, as `kubectl scale` does, are the release's again.

        Helm 4 otherwise refuses the whole upgrade; Helm 3 always does so. A release that Helm 3 made is not applied on the
        server's side unless that is said.
        """
        return ["--server-side=true", "--force-conflicts"] if self._major >= 4 else []

    @cached_property
    def _major(self) -> int:
        done = self._run(["version", "--template={{.Version}}"])
        match = re.match(r"v(\d+)\.", done.stdout.strip())
        if match is None:
            raise DeploymentError(f"`{self.program} version` does not tell its version: {_reason(done.stderr)}")
        return int(match[1])

    def _run(self, arguments: list[str], timeout: float = 60.0, given: str = "") -> subprocess.CompletedProcess[str]:
        if shutil.which(self.program) is None:
            raise DeploymentError(f"The deployment target helm needs the command {self.program}, which is not on PATH.")
        command = [self.program, *arguments]
        if self.namespace and arguments[0] != "version":
            command.append(f"--namespace={self.namespace}")
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, input=given)
        except subprocess.TimeoutExpired as error:
            raise DeploymentError(f"helm {arguments[0]} did not end within {timeout:.0f} s.") from error


def release_name(model: str) -> str:
    """Name of the release, and of its Service, for a model.

    Raises:
        InvalidInputError: the model's name cannot be part of a Kubernetes name.
    """
    name = model.lower().replace("_", "-")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise InvalidInputError(
            f"Model {model!r} cannot be served by the target helm: its name has to be letters, digits, - and _, at most 40."
        )
    return f"inference-{name}"


def _seconds(moment: str) -> float:
    """Seconds since the epoch of a time of Helm's, which has up to nine digits after the point, or none."""
    match = re.fullmatch(r"(.+?:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", moment)
    if match is None:
        raise DeploymentError(f"helm tells a time that is none: {moment!r}.")
    return datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).timestamp() + float(match[2] or 0)


def _reason(message: str) -> str:
    return " ".join(message.split())[-500:] or "helm says nothing"
