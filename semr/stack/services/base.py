"""What the supervisor knows about a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import httpx

from semr.stack.context import StackContext
from semr.stack.ports import PortRequest

CHECK_TIMEOUT_S = 3.0


class NotReadyError(Exception):
    """A health check did not pass; the message says in a phrase what is awaited."""


class RestartNeededError(Exception):
    """The server runs, but only a new start mends it; the message says in a phrase why."""


class Service(ABC):
    """One server: how to start it, and how to tell that it is healthy."""

    name: ClassVar[str]
    # Seconds between the request to end and the kill.
    grace_s: ClassVar[float] = 5.0

    def __init__(self, context: StackContext) -> None:
        self.context = context

    @classmethod
    @abstractmethod
    def port_requests(cls) -> tuple[PortRequest, ...]:
        """The ports that it needs."""

    @classmethod  # noqa: B027 a hook
    def check_installed(cls) -> None:
        """Raise `ProgramMissingError` when its program is not installed."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it answers."""

    @property
    def owned_ports(self) -> set[int]:
        """Ports on which its own processes must listen: an answer could also come from another program."""
        return {httpx.URL(self.url).port or 0}

    @property
    def note(self) -> str:
        """What a person should know about it while it is healthy."""
        return ""

    @abstractmethod
    def command(self) -> list[str]:
        """Program and arguments; no credential is among them, since every user of the machine can read them."""

    def environment(self) -> dict[str, str]:
        """Variables over those that all servers get."""
        return {}

    def prepare(self) -> None:  # noqa: B027 a hook
        """Write configuration and remove leftovers, before each start."""

    @abstractmethod
    async def check(self, client: httpx.AsyncClient) -> None:
        """Return when the server is healthy; while it starts, also bring it on its way (make buckets, start Serve).

        Raises:
            NotReadyError: it is not healthy yet.
            RestartNeededError: it will not become healthy by itself.
            httpx.HTTPError: it does not answer.
        """

    async def tend(self, client: httpx.AsyncClient) -> None:  # noqa: B027 a hook
        """Regular work while it is healthy, and once before it ends; may raise what `check` raises."""

    def clean_up(self) -> None:  # noqa: B027 a hook
        """Remove what it left behind, after it ended."""

    def port(self, request: str) -> int:
        """The port that was chosen for `request`."""
        return self.context.ports[request]


async def expect_ok(
    client: httpx.AsyncClient, url: str, awaited: str, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """GET `url`; a `NotReadyError` with `awaited` unless the answer is 2xx."""
    response = await client.get(url, headers=headers)
    if not response.is_success:
        raise NotReadyError(f"{awaited} (HTTP {response.status_code})")
    return response
