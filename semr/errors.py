"""Errors that SEMR raises on purpose: each says what is wrong and what to do about it.

The command line turns them into one line on standard error and their `exit_code`; nothing else of SEMR calls `sys.exit`.
"""


class SemrError(Exception):
    """Base of every error that SEMR raises on purpose; the message is one sentence for a person."""

    exit_code = 1


class InvalidInputError(SemrError):
    """What the caller gave cannot be used: a wrong file, value or name. Retrying is useless."""

    exit_code = 2


class SettingsError(InvalidInputError):
    """A setting of the contract is missing or malformed."""


class DependencyUnavailableError(SemrError):
    """A service that SEMR depends on did not answer within the bounded retries.

    Args:
        service: name of the service, as in `semr status`.
        endpoint: URL that was tried.
        reason: what the last try answered.
    """

    def __init__(self, service: str, endpoint: str, reason: str) -> None:
        self.service = service
        self.endpoint = endpoint
        self.reason = reason
        super().__init__(f"{service} at {endpoint} is unavailable: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # Exceptions with own constructors cross process boundaries (Ray, Flyte) only when they can be rebuilt.
        return (type(self), (self.service, self.endpoint, self.reason))
