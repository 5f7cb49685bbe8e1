"""What every deployment target can do."""

from __future__ import annotations

from typing import Protocol

from semr.errors import SemrError
from semr.registry import ModelVersionRef


class DeploymentError(SemrError):
    """A version could not be brought into service; what was served before still is."""


class DeploymentTarget(Protocol):
    """A place where model versions are served, one version of a model at a time."""

    def deploy(self, ref: ModelVersionRef, *, replicas: int | None = None, timeout_seconds: float = 180.0) -> str:
        """Serve `ref` in place of the version before it without failing a request, and return the URL before `/v2`.

        Returns when every replica answers with that version. `replicas` None leaves their number as it is; 1 at first.

        Raises:
            DeploymentError: it does not come into service; the version before it is served again.
            DependencyUnavailableError: the target's control API does not answer.
        """

    def current(self, model: str) -> str | None:
        """Version of `model` that the target is told to serve, None if none."""

    def url(self, model: str) -> str:
        """URL of the model's server, what stands before `/v2`."""

    def remove(self, model: str) -> None:
        """Serve `model` no longer; no error if it was not served."""
