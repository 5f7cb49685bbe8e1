"""Client of the evolution service, for the command line and for a cron workflow."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Literal

import httpx

from semr.errors import DependencyUnavailableError, InvalidInputError, SemrError, SettingsError
from semr.evolution.launch import FINAL
from semr.settings import Settings, get_settings

_SERVICE = "evolution service"
_TIMEOUT_SECONDS = 30.0
_TRIES = 3
_POLL_SECONDS = 0.5


class RefusedError(SemrError):
    """The service does not do now what it was asked for; the message has its reason."""


class EvolutionClient:
    """Talks to the service that the contract names; every method may raise what `_ask` raises.

    Raises:
        DependencyUnavailableError: the service does not answer.
        SettingsError: it does not accept the token.
        InvalidInputError: it has no such model, or the request is wrong.
        RefusedError: not now.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        settings = settings or get_settings()
        self._url = settings.need("evolution_url")
        headers = {"Authorization": f"Bearer {settings.need('evolution_token')}"}
        self._client = httpx.Client(base_url=f"{self._url}/api/v1", headers=headers, timeout=_TIMEOUT_SECONDS)

    def __enter__(self) -> EvolutionClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def retrain(self, model: str, reason: str = "", kind: Literal["human", "cron"] = "human") -> dict[str, Any]:
        """Launch a retraining; returns the launch."""
        return self._ask("POST", f"/models/{model}/retrain", {"reason": reason, "kind": kind})

    def roll_back(self, model: str, version: str | None = None, reason: str = "") -> dict[str, Any]:
        """Launch a rollback to `version`, or to the one before; returns the launch."""
        body = {"reason": reason, **({"version": version} if version else {})}
        return self._ask("POST", f"/models/{model}/rollback", body)

    def pause(self, model: str, reason: str = "") -> bool:
        """Pause the model; False when it was paused."""
        return bool(self._ask("POST", f"/models/{model}/pause", {"reason": reason})["changed"])

    def resume(self, model: str, reason: str = "") -> bool:
        """Resume the model; False when it was not paused."""
        return bool(self._ask("POST", f"/models/{model}/resume", {"reason": reason})["changed"])

    def models(self) -> list[dict[str, Any]]:
        """All models of the policy, with aliases, pause and launches."""
        found: list[dict[str, Any]] = self._ask("GET", "/models")["models"]
        return found

    def history(self, model: str, limit: int = 100) -> dict[str, Any]:
        """Audit records (`records`, oldest first) and why some may be missing (`missing`, "" when none are)."""
        return self._ask("GET", f"/models/{model}/history?limit={limit}")

    def launch(self, launch_id: str) -> dict[str, Any]:
        """A launch by its id."""
        return self._ask("GET", f"/launches/{launch_id}")

    def wait(self, launch_id: str, timeout_seconds: float) -> dict[str, Any]:
        """The launch when it has ended.

        Raises:
            RefusedError: it has not ended in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            launch = self.launch(launch_id)
            if launch["state"] in {state.value for state in FINAL}:
                return launch
            if time.monotonic() > deadline:
                raise RefusedError(
                    f"Launch {launch_id} is still {launch['state']} after {timeout_seconds:.0f} s "
                    f"({launch['detail'] or 'at work'}): it goes on, see `semr history`."
                )
            time.sleep(_POLL_SECONDS)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.5 * attempt)
            try:
                answer = self._client.request(method, path, json=body)
            except httpx.ConnectError as error:
                reason = str(error)
                continue
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                # It may have been received: asking again could order a second time.
                raise DependencyUnavailableError(_SERVICE, self._url, str(error) or type(error).__name__) from error
            return self._content(answer)
        raise DependencyUnavailableError(_SERVICE, self._url, reason)

    def _content(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise DependencyUnavailableError(_SERVICE, self._url, f"it answered {answer.status_code} without JSON")
        if answer.is_success:
            return content
        message = str(content.get("error") or f"HTTP {answer.status_code}")
        if answer.status_code == 401:
            raise SettingsError(message)
        if answer.status_code == 409:
            raise RefusedError(message)
        if answer.status_code < 500:
            raise InvalidInputError(message)
        raise DependencyUnavailableError(_SERVICE, self._url, message)
