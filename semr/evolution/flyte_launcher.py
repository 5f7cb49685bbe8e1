"""The launcher for a Flyte backend: one execution of a launch plan for each launch, under the launch's id as its name.

Flyte refuses a second execution of the same name, so that starting a launch again finds the first one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cached_property

from flytekit.clients.grpc_utils.auth_interceptor import grpc
from flytekit.configuration import Config, PlatformConfig
from flytekit.exceptions.base import FlyteException
from flytekit.exceptions.system import FlyteSystemException
from flytekit.exceptions.user import (
    FlyteAuthenticationException,
    FlyteEntityNotExistException,
    FlyteTimeout,
)
from flytekit.models.core.execution import WorkflowExecutionPhase
from flytekit.remote import FlyteRemote

from semr.errors import DependencyUnavailableError, InvalidInputError, SettingsError
from semr.evolution.launch import Launch, failed, parse_outcome
from semr.evolution.launcher import Progress, Sight
from semr.settings import Settings

_SERVICE = "Flyte"
# Name that flytekit gives to the only output of a workflow.
_OUTPUT = "o0"
# Before the error itself, in what flytekit makes of an exception.
_MESSAGE = "\nMessage:\n"
_CALL_TIMEOUT = timedelta(seconds=30)


def sentence_of(message: str) -> str:
    """What a person wants of the error of an execution.

    Flyte passes on what flytekit writes in a task: `Trace:`, the stack trace, `Message:`, and the error itself.
    """
    _, _, own = message.rpartition(_MESSAGE)
    return " ".join((own or message).split())


class FlyteLauncher:
    """Runs launches on the Flyte backend of the contract; see `semr.evolution.launcher.Launcher`."""

    claims = False

    def __init__(self, settings: Settings) -> None:
        self._endpoint = settings.need("flyte_endpoint")
        self._settings = settings

    def start(self, launch: Launch) -> None:
        """See `Launcher.start`."""
        plan = launch.plan.get("flyte")
        if plan is None:
            raise InvalidInputError("The policy has no Flyte plan for this model: add launch.flyte.")
        with self._named_errors(f"launch plan {plan['launch_plan']!r}"):
            entity = self._remote.fetch_launch_plan(name=plan["launch_plan"], version=plan["version"])
            self._remote.execute(entity, inputs=launch.inputs, execution_name=launch.id, wait=False)

    def look(self, launch: Launch) -> Progress:
        """See `Launcher.look`."""
        with self._named_errors(f"execution {launch.id}"):
            try:
                execution = self._remote.fetch_execution(name=launch.id)
            except FlyteEntityNotExistException:
                return Progress(Sight.LOST)
            if not execution.is_done:
                return Progress(Sight.RUNNING)
            if not execution.is_successful:
                phase = WorkflowExecutionPhase.enum_to_string(execution.closure.phase)
                reason = sentence_of(execution.error.message) if execution.error else "no reason given"
                return Progress(Sight.ENDED, failed(f"The Flyte execution {launch.id} is {phase}: {reason}"))
            value: object = execution.outputs.get(_OUTPUT, str) if execution.outputs else None
        try:
            return Progress(Sight.ENDED, parse_outcome(value))
        except InvalidInputError as error:
            return Progress(Sight.ENDED, failed(str(error)))

    def stop(self, launch: Launch) -> None:
        """See `Launcher.stop`."""
        with self._named_errors(f"execution {launch.id}"):
            execution = self._remote.fetch_execution(name=launch.id)
            self._remote.terminate(execution, f"longer than {launch.plan['max_run_seconds']} s")

    @cached_property
    def _remote(self) -> FlyteRemote:
        # A scheme says whether to use TLS; without one the endpoint is one inside the cluster or of a lab.
        secure = self._endpoint.startswith("https://")
        address = self._endpoint.removeprefix("https://").removeprefix("http://")
        # What else flytekit reads of its own configuration, such as credentials, stays.
        platform = replace(PlatformConfig.auto(), endpoint=address, insecure=not secure)
        return FlyteRemote(
            Config.auto().with_params(platform=platform),
            default_project=self._settings.flyte_project,
            default_domain=self._settings.flyte_domain,
        )

    @contextmanager
    def _named_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FlyteEntityNotExistException as error:
            raise InvalidInputError(
                f"{_SERVICE} at {self._endpoint} has no {what} in {self._settings.flyte_project}/"
                f"{self._settings.flyte_domain}: register it first."
            ) from error
        except FlyteAuthenticationException as error:
            raise SettingsError(
                f"{_SERVICE} at {self._endpoint} refuses the credentials: check flytekit's configuration."
            ) from error
        except (FlyteSystemException, FlyteTimeout, grpc.RpcError, OSError) as error:
            cause = error.__cause__ or error
            details = cause.details() if isinstance(cause, grpc.Call) else str(cause)
            raise DependencyUnavailableError(_SERVICE, self._endpoint, " ".join(str(details).split())[:300]) from error
        except (FlyteException, ValueError, TypeError) as error:
            raise InvalidInputError(
                f"{_SERVICE} does not accept {what}: {' '.join(str(error).split())[:300]}"
            ) from error
