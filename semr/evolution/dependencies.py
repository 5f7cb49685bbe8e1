"""Whether the servers that a launch needs answer: asked regularly, so that a launch waits for them in place of failing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from semr.errors import SemrError
from semr.settings import Settings
from semr.storage import ObjectStore

_TIMEOUT_SECONDS = 5.0
# Names as in `semr status`.
OBJECT_STORE = "object-store"


@dataclass(frozen=True)
class Dependency:
    """A server that launches need; `check` raises `SemrError` or `httpx.HTTPError` while it does not answer."""

    name: str
    check: Callable[[], None]


class Dependencies:
    """The last known state of every dependency; `probe` asks anew."""

    def __init__(self, dependencies: list[Dependency]) -> None:
        self._dependencies = dependencies
        self._problems: dict[str, str] = {each.name: "not asked yet" for each in dependencies}

    def probe(self) -> None:
        """Ask every dependency; takes seconds while some do not answer."""
        for each in self._dependencies:
            try:
                each.check()
            except (SemrError, httpx.HTTPError) as error:
                self._problems[each.name] = " ".join(str(error).split()) or type(error).__name__
            else:
                self._problems.pop(each.name, None)

    @property
    def names(self) -> list[str]:
        """All dependencies."""
        return [each.name for each in self._dependencies]

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong, by name; only those that do not answer."""
        return dict(self._problems)


def dependencies_of(settings: Settings) -> Dependencies:
    """Those that the contract names: object store, MLflow, Ray, Prometheus."""
    found = []
    if settings.object_store_endpoint is not None:
        found.append(Dependency(OBJECT_STORE, ObjectStore.from_settings(settings).check))
    if settings.mlflow_uri is not None:
        found.append(_http("mlflow", f"{settings.mlflow_uri}/health"))
    if settings.ray_dashboard_url is not None:
        token = settings.ray_auth_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token is not None else {}
        found.append(_http("ray", f"{settings.ray_dashboard_url}/api/version", headers))
    if settings.prometheus_url is not None:
        found.append(_http("prometheus", f"{settings.prometheus_url}/-/ready"))
    return Dependencies(found)


def _http(name: str, url: str, headers: dict[str, str] | None = None) -> Dependency:
    def check() -> None:
        httpx.get(url, headers=headers, timeout=_TIMEOUT_SECONDS).raise_for_status()

    return Dependency(name, check)
