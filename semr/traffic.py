"""Live traffic for a served model: requests at a steady rate, the truth of each some time later, drift on demand.

Requests are sent when they are due, whether or not earlier ones have been answered (an open loop): a slow server is seen as
slow. An example derives from `OpenLoop` and says what a request is; rate, threads, delayed truth and counting are here.
"""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from rich.console import Console

from semr.errors import InvalidInputError, SemrError
from semr.inference.client import InferenceClient
from semr.inference.protocol import Array

# Enough senders that a request which waits for a second holds none back at 50 a second.
_SENDERS = 64
_MOST_REQUESTS_PER_SECOND = 1000
_LINE_SECONDS = 5.0
# What the client raises; the latter when an answer is none of the protocol.
_FAILURES = (SemrError, ValueError)

_Traffic = TypeVar("_Traffic", bound="OpenLoop")


@dataclass(frozen=True)
class Request:
    """What is sent, and what came true.

    Attributes:
        inputs: (rows, ...) of the model's input.
        truth: (rows, ...), what the model should answer.
        told: (rows, ...), what is fed back: the truth, but for a world that errs.
    """

    inputs: Array
    truth: Array
    told: Array


@dataclass(frozen=True)
class Tally:
    """What a stretch of traffic came to.

    Attributes:
        sent: requests that have been answered, or have failed.
        failed: how many of them had no answer, or an error.
        rows: answered ones of which is known whether they are right.
        right: how many of them are.
        versions: answered requests by model version.
    """

    sent: int
    failed: int
    rows: int
    right: int
    versions: dict[str, int]

    @property
    def accuracy(self) -> float:
        """Share of right answers, NaN when there are none."""
        return self.right / self.rows if self.rows else float("nan")

    def __str__(self) -> str:
        versions = ", ".join(f"version {version}: {count}" for version, count in sorted(self.versions.items()))
        return (
            f"{self.sent} requests, {self.failed} failed, accuracy {self.accuracy:.3f} ({versions or 'none answered'})"
        )


@dataclass
class _Outcome:
    """Of one request: when it ended, the version that answered (None: it failed), judged rows and right ones."""

    time: float
    version: str | None
    rows: int = 0
    right: int = 0


@dataclass
class OpenLoop(ABC):
    """A running stream of requests, from entering the context to leaving it.

    Attributes:
        url: what stands before `/v2`.
        model: its name.
        rate: requests a second.
        rows: in each request.
        requests: sending ends after so many; None: only with the context.
        feedback_delay: seconds from an answer until the truth is fed back; None feeds none back.
        feedback_share: share of the requests whose truth comes.
        seed: of all chance.
        errors: messages of requests and feedback that failed.

    Raises:
        InvalidInputError: one of these cannot be.
        DependencyUnavailableError, InferenceError: on entering: the server does not answer, or has no such model.
    """

    url: str
    model: str
    rate: float
    rows: int = field(default=1, kw_only=True)
    requests: int | None = field(default=None, kw_only=True)
    feedback_delay: float | None = field(default=1.0, kw_only=True)
    feedback_share: float = field(default=1.0, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    errors: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.rate <= _MOST_REQUESTS_PER_SECOND:
            raise InvalidInputError(
                f"The rate must be above 0 and at most {_MOST_REQUESTS_PER_SECOND} requests a second, not {self.rate:g}."
            )
        if self.rows < 1:
            raise InvalidInputError(f"A request has at least 1 row, not {self.rows}.")
        if self.requests is not None and self.requests < 1:
            raise InvalidInputError(f"There must be at least 1 request, not {self.requests}.")
        if self.feedback_delay is not None and not self.feedback_delay >= 0:
            raise InvalidInputError(f"Feedback cannot come {self.feedback_delay:g} seconds after the answer.")
        if not 0 <= self.feedback_share <= 1:
            raise InvalidInputError(
                f"The share of requests with feedback must be in 0 to 1, not {self.feedback_share:g}."
            )
        self.rng = np.random.default_rng(self.seed)
        self._is_over = threading.Event()
        self._has_sent = threading.Event()
        self._changed = threading.Condition()
        self._unsettled = 0
        self._outcomes: list[_Outcome] = []
        self._untold: list[tuple[float, int, str, Array, _Outcome]] = []
        self._order = itertools.count()
        self._threads = [
            threading.Thread(target=self._send_on_time, name="traffic", daemon=True),
            threading.Thread(target=self._tell_on_time, name="feedback", daemon=True),
        ]

    @abstractmethod
    def draw(self) -> Request:
        """The next request, with `rows` rows; called by one thread, which `rng` belongs to."""

    @abstractmethod
    def tell(self, client: InferenceClient, prediction_id: str, told: Array) -> int:
        """Feed back what came true; returns how many rows the server calls right."""

    def right(self, output: Array, truth: Array) -> int | None:
        """How many rows of the model's first output are right; None (the default) leaves it to the server, see `tell`."""
        return None

    def __enter__(self: _Traffic) -> _Traffic:
        self._client = InferenceClient(self.url, self.model, timeout_seconds=20.0)
        self._input = self._client.metadata().inputs[0].name
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="sender")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._has_sent.set()
        for thread in self._threads:
            thread.join(timeout=30)
        self._senders.shutdown(cancel_futures=True)
        self._client.close()

    def finish(self) -> Tally:
        """Send no more, but for the rest of `requests`; returns when all is answered and fed back."""
        if self.requests is None:
            self._has_sent.set()
        self._threads[0].join()
        with self._changed:
            self._changed.wait_for(lambda: self._unsettled == 0)
        return self.tally()

    def tally(self, since: float = 0.0, until: float = float("inf")) -> Tally:
        """Requests answered between two times of `time.monotonic`."""
        with self._changed:
            chosen = [outcome for outcome in self._outcomes if since <= outcome.time < until]
            return Tally(
                sent=len(chosen),
                failed=sum(outcome.version is None for outcome in chosen),
                rows=sum(outcome.rows for outcome in chosen),
                right=sum(outcome.right for outcome in chosen),
                versions=dict(Counter(outcome.version for outcome in chosen if outcome.version is not None)),
            )

    def newest_version(self) -> str | None:
        """Version that gave the last answer; None before the first one."""
        with self._changed:
            return next((each.version for each in reversed(self._outcomes) if each.version is not None), None)

    def _send_on_time(self) -> None:
        due = time.monotonic()
        for _ in itertools.count() if self.requests is None else range(self.requests):
            request = self.draw()
            is_told = self.feedback_delay is not None and self.rng.random() < self.feedback_share
            with self._changed:
                self._unsettled += 1
            self._senders.submit(self._send, request, is_told)
            due += 1 / self.rate
            if self._has_sent.wait(max(0.0, due - time.monotonic())):
                return

    def _send(self, request: Request, is_told: bool) -> None:
        waits_for_truth = False
        try:
            prediction = self._client.infer({self._input: request.inputs})
            right = self.right(next(iter(prediction.outputs.values())), request.truth)
            outcome = _Outcome(time.monotonic(), prediction.version)
            if right is not None:
                outcome.rows, outcome.right = len(request.truth), right
            waits_for_truth = is_told and bool(prediction.prediction_id)
            with self._changed:
                self._outcomes.append(outcome)
                if waits_for_truth:
                    due = outcome.time + (self.feedback_delay or 0.0)
                    waiting = (due, next(self._order), prediction.prediction_id, request.told, outcome)
                    heapq.heappush(self._untold, waiting)
        except _FAILURES as error:
            with self._changed:
                self._outcomes.append(_Outcome(time.monotonic(), None))
                self.errors.append(str(error))
        finally:
            if not waits_for_truth:
                self._settle()

    def _tell_on_time(self) -> None:
        while not self._is_over.wait(0.05):
            with self._changed:
                due = []
                while self._untold and self._untold[0][0] <= time.monotonic():
                    due.append(heapq.heappop(self._untold))
            for _, _, prediction_id, told, outcome in due:
                self._senders.submit(self._tell, prediction_id, told, outcome)

    def _tell(self, prediction_id: str, told: Array, outcome: _Outcome) -> None:
        try:
            right = self.tell(self._client, prediction_id, told)
            with self._changed:
                if not outcome.rows:
                    outcome.rows, outcome.right = len(told), right
        except _FAILURES as error:
            with self._changed:
                self.errors.append(str(error))
        finally:
            self._settle()

    def _settle(self) -> None:
        with self._changed:
            self._unsettled -= 1
            self._changed.notify_all()


@dataclass(frozen=True)
class Drift:
    """A change of what is sent: so many seconds after the beginning; `begin` makes it, and says in words what it is."""

    after: float
    begin: Callable[[], str]


def show(traffic: OpenLoop, seconds: float, drift: Drift | None = None, console: Console | None = None) -> Tally:
    """Send for so long and print what comes of it, every few seconds and in the end, with the commonest errors.

    Raises:
        InvalidInputError: there is no time to send in.
        DependencyUnavailableError, InferenceError: the server does not answer, or has no such model.
    """
    if not seconds > 0:
        raise InvalidInputError(f"Traffic takes more than {seconds:g} seconds.")
    console = console or Console()

    def say(since: float, words: object) -> None:
        console.print(f"{since:5.0f} s  {words}", highlight=False, markup=False)

    if drift and drift.after <= 0:
        say(0, f"drift begins: {drift.begin()}")
        drift = None
    with traffic, console.status("sending …") as status:
        started = shown = time.monotonic()
        while (now := time.monotonic()) < started + seconds:
            if drift and now >= started + drift.after:
                say(now - started, f"drift begins: {drift.begin()}")
                drift = None
            if now - shown >= _LINE_SECONDS:
                say(now - started, traffic.tally(since=shown))
                shown = now
            status.update(str(traffic.tally(since=now - 2)))
            time.sleep(min(0.2, seconds))
        status.update("waiting for the last answers …")
        whole = traffic.finish()
    console.print(f"in all   {whole}", highlight=False, markup=False)
    for message, times in Counter(traffic.errors).most_common(3):
        console.print(f"{times:6} x {message}", highlight=False, markup=False)
    return whole


def exit_code_of(work: Callable[[], Tally]) -> int:
    """Exit code of a command that sends traffic: 1 when requests failed; SEMR's errors are a line on standard error."""
    try:
        return 1 if work().failed else 0
    except SemrError as error:
        print(f"traffic: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
