"""Serve's applications in a RayService: read and changed by the Kubernetes API, from a pod whose account may do so."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from semr.deployment.target import DeploymentError
from semr.errors import DependencyUnavailableError, SettingsError

_SERVICE = "Kubernetes API"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TRIES = 5
_TIMEOUT_SECONDS = 15.0

Application = dict[str, Any]


@dataclass(frozen=True)
class KubernetesApi:
    """Where the API is and how it is reached.

    Attributes:
        url: base URL.
        token_file: file with the bearer token, read for each call, since Kubernetes renews it; None: no token.
        ca_file: certificates of the authority; None: those of the system.
    """

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None

    @classmethod
    def in_cluster(cls) -> KubernetesApi:
        """The API of the cluster in which this process runs.

        Raises:
            SettingsError: it runs in no pod, or its account has no token.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (_ACCOUNT / "token").is_file():
            raise SettingsError(
                "A RayService is changed from inside its cluster, by a pod with a service account token: deploy by a "
                "workflow on Flyte or by the evolution service, or unset SEMR_RAY_SERVICE."
            )
        address = f"[{host}]" if ":" in host else host
        return cls(f"https://{address}:{port}", _ACCOUNT / "token", _ACCOUNT / "ca.crt")

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """One call; a body is a merge patch.

        Raises:
            httpx.HTTPError: no answer.
        """
        headers = {"Content-Type": "application/merge-patch+json"} if body is not None else {}
        if self.token_file is not None:
            headers["Authorization"] = f"Bearer {self.token_file.read_text(encoding='utf-8').strip()}"
        verify: Any = True
        if self.ca_file is not None:
            import ssl  # noqa: PLC0415

            verify = ssl.create_default_context(cafile=str(self.ca_file))
        with httpx.Client(verify=verify, timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            return client.request(method, self.url + path, json=body, headers=headers)


@dataclass
class RayServiceApplications:
    """The applications in `spec.serveConfigV2` of the RayService `namespace/name`."""

    service: str
    api: KubernetesApi = field(default_factory=KubernetesApi.in_cluster)

    def put(self, name: str, application: Application | None) -> None:
        """Write `application` under `name` (None: remove it), all others as they are; nothing when it stands there already.

        Raises:
            DeploymentError: the API refuses, or others change the same object all the time.
            DependencyUnavailableError: the API does not answer.
        """
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.2 * 2 ** (attempt - 1))
            found = self._ask("GET")
            content = yaml.safe_load(found["spec"].get("serveConfigV2") or "") or {}
            before = content.get("applications") or []
            after = [each for each in before if each.get("name") != name]
            if application is not None:
                after.append(application)
            if sorted(after, key=_name) == sorted(before, key=_name):
                return
            config = yaml.safe_dump({**content, "applications": after}, sort_keys=False)
            # With the version that was read: the API refuses when somebody else was faster.
            patch = {
                "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
                "spec": {"serveConfigV2": config},
            }
            try:
                self._ask("PATCH", patch)
            except _ConflictError as error:
                reason = str(error)
                continue
            return
        raise DeploymentError(f"RayService {self.service} could not be changed: {reason}")

    def _ask(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        namespace, _, name = self.service.partition("/")
        path = f"/apis/ray.io/v1/namespaces/{namespace}/rayservices/{name}"
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            try:
                answer = self.api.ask(method, path, body)
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                continue
            if answer.status_code < 400:
                content: dict[str, Any] = answer.json()
                return content
            reason = f"{answer.status_code} {' '.join(answer.text.split())[-400:]}"
            if answer.status_code == 409:
                raise _ConflictError(reason)
            if answer.status_code < 500 and answer.status_code != 429:
                raise DeploymentError(f"The {_SERVICE} refused RayService {self.service}: {reason}")
        raise DependencyUnavailableError(_SERVICE, self.api.url, reason)


class _ConflictError(Exception):
    """Somebody else changed the object in between."""


def _name(application: Application) -> str:
    return str(application.get("name"))
