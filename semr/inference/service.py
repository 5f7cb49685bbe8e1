"""What a server does with a request once it is understood: find the version, run it, count it, hand it to the observer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from semr.errors import InvalidInputError
from semr.inference import http_errors
from semr.inference.holder import ModelHolder
from semr.inference.http_errors import HttpError
from semr.inference.instruments import IN_FLIGHT
from semr.inference.metrics import PrometheusSink
from semr.inference.options import ServerOptions, get_options
from semr.inference.protocol import InferRequest
from semr.inference.runtime import LoadedModel, ModelOutputError
from semr.inference.scheduling import PredictionTimeoutError, Scheduler
from semr.inference.tensors import Array
from semr.monitoring.classification import understand
from semr.monitoring.observer import new_prediction_id

logger = logging.getLogger(__name__)

# A call that runs this many times longer than a request may wait will not come back: time for a new process.
_HANGING = 10.0


@dataclass(frozen=True)
class ServerState:
    """What the application serves: the holder of the model, the numbers for `/metrics`, and how it behaves."""

    holder: ModelHolder
    prometheus: PrometheusSink
    options: ServerOptions = field(default_factory=get_options)
    #: Renders `/metrics`; that of the sink by default.
    render: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class Answer:
    """Outputs by name in the order that was asked for, the version that gave them, and the id to give feedback with."""

    outputs: dict[str, Array]
    version: str
    prediction_id: str


class InferenceService:
    """Answers requests for the one model of `state().holder`.

    Args:
        state: called for each request, so that a host can make the state after the application.
    """

    def __init__(self, state: Callable[[], ServerState]) -> None:
        self._state = state
        self._made: Scheduler | None = None
        self.in_flight = 0

    @property
    def state(self) -> ServerState:
        """The host's state."""
        return self._state()

    @property
    def _scheduler(self) -> Scheduler:
        if self._made is None:
            state = self.state
            self._made = Scheduler(state.options)
            state.prometheus.read_when_asked(IN_FLIGHT, {"model": state.holder.name}, lambda: self.in_flight)
        return self._made

    def check_name(self, model: str) -> ModelHolder:
        """The holder if it has `model`.

        Raises:
            HttpError: 404.
        """
        holder = self.state.holder
        if model != holder.name:
            raise HttpError(404, f"There is no model {model!r} here; this server has {holder.name!r}.")
        return holder

    def current(self) -> LoadedModel:
        """The version that answers.

        Raises:
            HttpError: 503 with the reason why there is none, or why it does not answer.
        """
        holder = self.state.holder
        loaded = holder.current
        if loaded is None:
            reason = next(iter(holder.problems.values()), "it is still loading")
            raise HttpError(503, f"Model {holder.name!r} is not ready: {reason.rstrip('.')}.", {"Retry-After": "1"})
        return loaded

    def find(self, model: str, version: str | None) -> LoadedModel:
        """The version of `model` that answers, which is `version` if one is named.

        Raises:
            HttpError: 404 for another model or version, 503 when it is not there yet or could not be loaded.
        """
        holder = self.check_name(model)
        if version is not None and version in holder.problems:
            raise HttpError(503, f"Model {model!r} version {version} is not ready: {holder.problems[version]}")
        loaded = self.current()
        if version is not None and version != loaded.ref.version:
            raise HttpError(404, f"Model {model!r} is served in version {loaded.ref.version}, not {version}.")
        return loaded

    def check_answering(self, times: float = 1.0) -> None:
        """Whether calls of the model come back.

        Raises:
            HttpError: 503 when one has been running for `times` the time that a request waits.
        """
        seconds = self._scheduler.running_seconds
        if seconds > times * self.state.options.timeout_s:
            raise HttpError(503, f"The model has been busy with one call for {seconds:.0f} s.")

    def check_alive(self) -> None:
        """Whether the process is of any use.

        Raises:
            HttpError: 503 when the model hangs.
        """
        self.check_answering(_HANGING)

    def admit(self) -> None:
        """Take note of a request before its body is read; `leave` must follow.

        Raises:
            HttpError: 503 when there are too many.
        """
        limit = self.state.options.queue
        if self.in_flight >= limit:
            raise http_errors.overloaded(limit)
        self.in_flight += 1

    def leave(self) -> None:
        """The request is answered."""
        self.in_flight -= 1

    async def infer(
        self,
        loaded: LoadedModel,
        inputs: dict[str, Array],
        request: InferRequest | None = None,
        *,
        are_finite: bool = False,
    ) -> Answer:
        """Predict and observe.

        Args:
            loaded: the version, as `find` gave it.
            inputs: arrays by name.
            request: names the outputs that are wanted; all by default.
            are_finite: whether it is known that no input is NaN or infinite.

        Raises:
            HttpError: 400 for inputs that do not fit, 413 for too many rows, 500 when the model fails, 504 when it is slow.
        """
        options = self.state.options
        try:
            rows = loaded.check(inputs, are_finite=are_finite)
            wanted = _wanted(loaded, request)
            if rows > options.request_rows:
                raise http_errors.too_many_rows(rows, options.request_rows)
            outputs = await self._scheduler.predict(loaded, inputs, rows)
        except InvalidInputError as error:
            raise HttpError(400, str(error)) from error
        except PredictionTimeoutError as error:
            raise http_errors.timed_out(options.timeout_s) from error
        except ModelOutputError as error:
            logger.error("%s", error)
            raise HttpError(500, str(error)) from error
        except HttpError:
            raise
        except Exception as error:
            # Anything that the model's own code raises: the log has the trace, the client a sentence.
            logger.exception("model %s failed on a request", loaded.ref.uri)
            raise HttpError(
                500, f"Model {loaded.ref.name!r} version {loaded.ref.version} failed on this request."
            ) from error
        said = understand(outputs, loaded.tolerance)
        token = new_prediction_id(loaded.ref.name, loaded.ref.version, said)
        only_input = next(iter(inputs.values())) if len(inputs) == 1 else None
        self.state.holder.observer.observe(loaded.ref.version, token, only_input, said)
        return Answer({name: outputs[name] for name in wanted} if wanted else outputs, loaded.ref.version, token)

    def count(self, loaded: LoadedModel, status: int, started: float, rows: int | None) -> None:
        """Count an answered request that began at `started` of `time.perf_counter`."""
        self.state.holder.metrics.answered(
            loaded.ref.name, loaded.ref.version, status, time.perf_counter() - started, rows
        )


def _wanted(loaded: LoadedModel, request: InferRequest | None) -> list[str]:
    if request is None or not request.outputs:
        return []
    wanted = [output.name for output in request.outputs]
    known = [tensor.name for tensor in loaded.outputs]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise InvalidInputError(f"Model {loaded.ref.name!r} has no output {unknown[0]!r}; it has {known}.")
    return wanted
