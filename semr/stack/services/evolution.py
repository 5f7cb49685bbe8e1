"""The evolution service: takes alerts from Alertmanager and launches retrainings as processes of this machine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import ClassVar

import httpx

from semr.stack.errors import StackError
from semr.stack.ports import LOOPBACK, PortRequest
from semr.stack.services.base import Service, expect_ok

# By name: SEMR does not import examples.
_EXAMPLE = "workflow_examples.mnist"


class EvolutionService(Service):
    """`semr evolve serve` with its ledger in the state folder."""

    name: ClassVar[str] = "evolution"

    @classmethod
    def port_requests(cls) -> tuple[PortRequest, ...]:
        """One port for webhook, API and metrics."""
        return (PortRequest("evolution", 8500),)

    @property
    def url(self) -> str:
        """API and webhook."""
        return self.context.settings.need("evolution_url")

    @property
    def _policy(self) -> Path:
        given = self.context.options.policy
        if given is not None:
            return Path(given)
        found = importlib.util.find_spec(_EXAMPLE)
        if found is None or found.origin is None:
            raise StackError(f"{_EXAMPLE} is not installed, so there is no default policy: name one with --policy.")
        return Path(found.origin).with_name("policy.yaml")

    def command(self) -> list[str]:
        """The public command line; the token is in the environment."""
        return [
            sys.executable,
            "-m",
            "semr.cli",
            "evolve",
            "serve",
            "--policy",
            str(self._policy),
            "--dir",
            str(self.context.folder.data(self.name)),
            "--listen",
            f"{LOOPBACK}:{self.port('evolution')}",
        ]

    def environment(self) -> dict[str, str]:
        """The contract: its launches inherit it."""
        settings = self.context.settings
        return {**settings.contract(), **settings.client_environment()}

    async def check(self, client: httpx.AsyncClient) -> None:
        """Its health endpoint answers, also while it waits for other services."""
        await expect_ok(client, f"{self.url}/healthz", "waiting for the service")
