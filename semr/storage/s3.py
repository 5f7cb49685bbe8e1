"""The connection: a pyarrow file system on an S3 server, and its errors in SEMR's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pyarrow import fs

from semr.errors import DependencyUnavailableError, SettingsError
from semr.settings import Settings

SERVICE = "object store"
ATTEMPTS = 3
CONNECT_TIMEOUT_SECONDS = 2.0
# A transfer fails after this long without a byte. A busy server may pause for some seconds while it allocates space.
STALL_TIMEOUT_SECONDS = 10.0
# The health check moves no data. Three tries with the SDK's pauses stay below 15 s even when the server never answers.
CHECK_STALL_TIMEOUT_SECONDS = 3.0

_REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID", "SIGNATURE_DOES_NOT_MATCH")
_REFUSED_STATUS = "HTTP status 403"
_SERVER_ERROR = "AWS Error"
_INTERNAL_ERROR = "INTERNAL_FAILURE"


def is_server_error(error: OSError) -> bool:
    """Whether pyarrow got this from the server or the network, and not from the content of a file that it was reading."""
    return _SERVER_ERROR in str(error)


@dataclass(frozen=True)
class Connection:
    """Where the object store is and with which credentials it is reached; may be pickled to another process."""

    endpoint: str
    region: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    @classmethod
    def from_settings(cls, settings: Settings) -> Connection:
        """Take the connection from the contract.

        Raises:
            SettingsError: the endpoint or a key is not set.
        """
        return cls(
            endpoint=settings.need("object_store_endpoint"),
            region=settings.object_store_region,
            access_key=settings.need("object_store_access_key"),
            secret_key=settings.need("object_store_secret_key"),
        )

    def open(self, stall_timeout: float = STALL_TIMEOUT_SECONDS) -> fs.S3FileSystem:
        """A file system with bounded retries; `stall_timeout` in seconds without a byte."""
        address = urlsplit(self.endpoint)
        return fs.S3FileSystem(
            access_key=self.access_key,
            secret_key=self.secret_key,
            region=self.region,
            scheme=address.scheme,
            endpoint_override=address.netloc + address.path,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            request_timeout=stall_timeout,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            allow_bucket_creation=True,
            # Small objects go out in one PUT when the stream is closed, instead of as a multipart upload.
            allow_delayed_open=True,
            background_writes=False,
        )

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Turn what pyarrow raises about the server into named errors; a missing object stays `FileNotFoundError`.

        Raises:
            SettingsError: the server refuses the credentials.
            DependencyUnavailableError: the server does not answer, or answers with a failure.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            first = _first_of(error)
            reason = " ".join(str(first).split()) or type(first).__name__
            if any(word in reason for word in _REFUSALS) or _REFUSED_STATUS in reason:
                raise SettingsError(
                    f"The {SERVICE} at {self.endpoint} refuses the credentials or the access: check "
                    f"{Settings.variable('object_store_access_key')} and "
                    f"{Settings.variable('object_store_secret_key')}."
                ) from error
            if _INTERNAL_ERROR in reason:
                reason += " (a store whose disk is full says so, too)"
            raise DependencyUnavailableError(SERVICE, self.endpoint, reason) from error


def _first_of(error: OSError) -> OSError:
    """A stream is closed after a write that failed, which fails in turn, in words that do not tell why."""
    while isinstance(error.__context__, OSError):
        error = error.__context__
    return error
