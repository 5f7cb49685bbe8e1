"""Deployment target Ray Serve: one Serve application a model, told what to serve by Serve's declarative REST API.

The API takes the whole list of applications at once, so a change is read, merged and put; a deployer whose change was
overwritten by another one in between sees it and puts it again. On a cluster with a RayService the list is written there: the
KubeRay operator puts it, and puts it again after a restart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from semr.deployment.ray_service import RayServiceApplications
from semr.deployment.target import DeploymentError
from semr.errors import DependencyUnavailableError
from semr.inference.client import InferenceClient
from semr.registry import ModelVersionRef
from semr.settings import Settings, get_settings

# As in `semr.inference.ray_serve`, which imports Ray Serve; the one who deploys need not. A test holds them equal.
DEPLOYMENT = "ModelServer"
IMPORT_PATH = "semr.inference.ray_serve:build"

_SERVICE = "Ray Serve REST API"
_API = "/api/serve/applications/"
_TRIES = 5
_POLL_SECONDS = 0.25
# Answers in a row, for each replica, that must come from the new version. Serve has told all replicas by then; this guards
# against a replica that kept the old version because it could not load the new one.
_ANSWERS_PER_REPLICA = 3
# Requests in a replica at once. Beyond it Serve's router waits in steps of up to a second for a free place: at Serve's default
# of 5, the throughput of a fast model falls to a few requests a second as soon as more come at once.
_MOST_AT_ONCE = 100

Application = dict[str, Any]


@dataclass
class RayServeTarget:
    """The Serve instance of one Ray cluster; see `semr.deployment.target.DeploymentTarget`.

    Attributes:
        cpus_per_replica: logical CPUs that a replica reserves.
    """

    settings: Settings = field(default_factory=get_settings)
    cpus_per_replica: float = 0.5

    def deploy(self, ref: ModelVersionRef, *, replicas: int | None = None, timeout_seconds: float = 180.0) -> str:
        """See `DeploymentTarget.deploy`."""
        before = self._applications().get(ref.name)
        replicas = replicas or _replicas(before)
        wanted = self._application(ref, replicas)
        self._put(ref.name, wanted)
        try:
            self._wait_until_served(ref, wanted, replicas, time.monotonic() + timeout_seconds)
        except (DeploymentError, KeyboardInterrupt):
            self._put(ref.name, before)
            raise
        return self.url(ref.name)

    def current(self, model: str) -> str | None:
        """See `DeploymentTarget.current`."""
        application = self._applications().get(model)
        return _version(application) if application else None

    def url(self, model: str) -> str:
        """See `DeploymentTarget.url`."""
        return f"{self.settings.need('serve_url')}/{model}"

    def remove(self, model: str) -> None:
        """See `DeploymentTarget.remove`."""
        if model in self._applications():
            self._put(model, None)

    def _application(self, ref: ModelVersionRef, replicas: int) -> Application:
        return {
            "name": ref.name,
            "route_prefix": f"/{ref.name}",
            "import_path": IMPORT_PATH,
            "args": {"model": ref.name},
            # A line for every request, written by replica and proxy, takes more than a small model's answer.
            "logging_config": {"enable_access_log": False},
            "deployments": [
                {
                    "name": DEPLOYMENT,
                    "num_replicas": replicas,
                    "max_ongoing_requests": _MOST_AT_ONCE,
                    "user_config": {"version": ref.version},
                    "ray_actor_options": {"num_cpus": self.cpus_per_replica},
                }
            ],
        }

    def _wait_until_served(self, ref: ModelVersionRef, wanted: Application, replicas: int, deadline: float) -> None:
        needed = _ANSWERS_PER_REPLICA * replicas
        answered, reason = 0, "it is starting"
        with InferenceClient(self.url(ref.name), ref.name, timeout_seconds=10.0) as client:
            while answered < needed:
                if time.monotonic() > deadline:
                    raise DeploymentError(f"{ref.uri} did not come into service in time: {reason}")
                status, reason = self._status(ref, wanted)
                if status != "RUNNING":
                    answered = 0
                    time.sleep(_POLL_SECONDS)
                    continue
                is_ready, reason = client.readiness(ref.version)
                if is_ready:
                    answered += 1
                    continue
                if "answered 503" in reason and f"version {ref.version} " in reason:
                    raise DeploymentError(f"{ref.uri} is not served: {reason}")
                answered = 0
                time.sleep(_POLL_SECONDS)

    def _status(self, ref: ModelVersionRef, wanted: Application) -> tuple[str, str]:
        """Serve's status of the application and a reason; puts it again when another deployer's list has dropped it.

        Raises:
            DeploymentError: Serve gave it up.
        """
        details = self._instance().get("applications", {}).get(ref.name)
        if details is None or _version(details.get("deployed_app_config") or {}) != ref.version:
            self._put(ref.name, wanted)
            return "DEPLOYING", "it was overwritten and is put again"
        status, message = str(details["status"]), str(details.get("message") or "")
        messages = [str(each.get("message") or "") for each in details.get("deployments", {}).values()]
        reason = " ".join(" ".join([message, *messages]).split())[-500:] or f"its status is {status}"
        if status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise DeploymentError(f"{ref.uri} is not served: Ray Serve says {status}: {reason}")
        return status, reason

    def _applications(self) -> dict[str, Application]:
        """The configuration of every application that Serve has been told to run."""
        return _deployed(self._instance())

    def _put(self, name: str, application: Application | None) -> None:
        """Tell Serve to run `application` under `name` (None: no longer), all others as they are."""
        if self.settings.ray_service is not None:
            RayServiceApplications(self.settings.ray_service).put(name, application)
            return
        instance = self._instance()
        applications = _deployed(instance)
        applications.pop(name, None)
        if application is not None:
            applications[name] = application
        body: dict[str, Any] = {"applications": list(applications.values())}
        # Left out, these would fall back to Serve's defaults, which cannot be changed while it runs.
        for key in ("proxy_location", "http_options", "grpc_options"):
            if instance.get(key) is not None:
                body[key] = instance[key]
        self._ask("PUT", body)

    def _instance(self) -> dict[str, Any]:
        content: dict[str, Any] = self._ask("GET").json()
        return content

    def _ask(self, method: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """One call of Serve's API, tried again when it does not answer: 0.5 + 1 + 2 + 4 s between five tries."""
        url = self.settings.serve_api_url or self.settings.need("ray_dashboard_url")
        token = self.settings.ray_auth_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            try:
                answer = httpx.request(method, url + _API, json=body, headers=headers, timeout=30.0)
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                continue
            if answer.status_code < 400:
                return answer
            reason = f"{answer.status_code} {' '.join(answer.text.split())[-400:]}"
            if answer.status_code < 500:
                raise DeploymentError(f"{_SERVICE} refused the configuration: {reason}")
        raise DependencyUnavailableError(_SERVICE, url, reason)


def _deployed(instance: dict[str, Any]) -> dict[str, Application]:
    """The configuration of every application that this Serve has been told to run."""
    return {
        name: details["deployed_app_config"]
        for name, details in instance.get("applications", {}).items()
        if details.get("deployed_app_config") and details.get("status") != "DELETING"
    }


def _replicas(application: Application | None) -> int:
    server = _server(application or {})
    return int(server.get("num_replicas") or 1) if server else 1


def _version(application: Application) -> str | None:
    server = _server(application)
    return str(server.get("user_config", {}).get("version")) if server else None


def _server(application: Application) -> dict[str, Any] | None:
    return next((each for each in application.get("deployments", []) if each.get("name") == DEPLOYMENT), None)
