"""Errors of the embedded stack."""

from __future__ import annotations

from semr.errors import InvalidInputError, SemrError


class StackError(SemrError):
    """The stack could not be brought up, kept or taken down."""


class StackFolderError(InvalidInputError):
    """The state folder cannot be used."""


class ProgramMissingError(StackError):
    """A server program is not installed."""


class ServiceFailedError(StackError):
    """A service did not become healthy.

    Args:
        service: name of the service, as in `semr status`.
        reason: what happened, without a final full stop.
        log_tail: last lines of the service's log.
    """

    def __init__(self, service: str, reason: str, log_tail: str) -> None:
        self.service = service
        self.reason = reason
        self.log_tail = log_tail
        super().__init__(
            f"{service} did not start: {reason}; see its log above or with `semr logs {service}`, then run `semr up` again."
        )

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return (type(self), (self.service, self.reason, self.log_tail))
