"""When a request's rows go through the model: at once while there is nothing else to do, together with others under load.

Requests wait in one queue. When the model is free, those at hand that fit together share a call: while it runs, the next
ones gather, so that calls grow with the load and a lone request waits for nobody (Crankshaw et al., "Clipper", NSDI 2017,
call the idea adaptive batching). Before a slow call the first request may wait a little for others, if others are likely.

Short calls run in the event loop's own thread, between two requests: handing them to another thread takes longer than they
do. All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semr.errors import SemrError
from semr.inference.options import ServerOptions
from semr.inference.runtime import LoadedModel
from semr.inference.tensors import Array
from semr.inference.workers import WorkerThreads

logger = logging.getLogger(__name__)

Outputs = dict[str, Array]

# Calls that take less than sharing them would save run at once (measured: 20 µs for a place in the queue).
_AT_ONCE_SECONDS = 100e-6
# Weight of the newest gap between two requests in their running mean.
_NEWEST = 0.2
# Gaps without a further request after which none is expected any more.
_PATIENCE_GAPS = 4.0


class PredictionTimeoutError(SemrError):
    """A request had no answer in time."""


@dataclass(eq=False, slots=True)
class _Waiting:
    loaded: LoadedModel
    inputs: dict[str, Array]
    rows: int
    future: asyncio.Future[Outputs]

    def fits(self, other: _Waiting) -> bool:
        """Whether both can share a call: the same version, and inputs that differ in the number of rows only."""
        return (
            self.loaded is other.loaded
            and self.inputs.keys() == other.inputs.keys()
            and all(array.shape[1:] == other.inputs[name].shape[1:] for name, array in self.inputs.items())
        )


class Scheduler:
    """Runs requests through models within the limits of `options`."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._inline_seconds = options.inline_ms / 1000
        self._wait_seconds = options.batch_wait_ms / 1000
        self._queue: deque[_Waiting] = deque()
        self._workers = WorkerThreads("semr-model")
        # Started at, by call, for each model that has calls in threads; models are told apart by identity.
        self._running: dict[int, list[float]] = {}
        self._flush: asyncio.Handle | None = None
        self._gap = float("inf")
        self._last_arrival = float("-inf")

    @property
    def running_seconds(self) -> float:
        """How long the oldest call that has not come back has been running; 0 without any."""
        started = [each for calls in self._running.values() for each in calls]
        return time.monotonic() - min(started) if started else 0.0

    async def predict(self, loaded: LoadedModel, inputs: dict[str, Array], rows: int) -> Outputs:
        """Outputs for `inputs`, which `loaded.check` has passed, alone or together with other requests.

        Raises:
            PredictionTimeoutError: after `timeout_s`; a call that is running by then goes on, and nobody waits for it.
            ModelOutputError: see `LoadedModel.predict`.
            Exception: whatever the model's own code raises.
        """
        expected = loaded.cost.seconds(rows)
        if expected <= min(_AT_ONCE_SECONDS, self._inline_seconds) and loaded.is_steady and not self._running:
            return loaded.run(inputs)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loaded, inputs, rows, loop.create_future())
        self._note_arrival()
        self._queue.append(waiting)
        self._plan(loop, waiting)
        timer = loop.call_later(self._options.timeout_s, self._expire, waiting)
        try:
            return await waiting.future
        finally:
            timer.cancel()

    def _note_arrival(self) -> None:
        now = time.monotonic()
        gap = now - self._last_arrival
        # After a pause the old mean says nothing: begin anew.
        self._gap = gap if gap > 1.0 or self._gap > 1.0 else self._gap + _NEWEST * (gap - self._gap)
        self._last_arrival = now

    def _plan(self, loop: asyncio.AbstractEventLoop, newest: _Waiting) -> None:
        if self._flush is not None:
            if sum(each.rows for each in self._queue) >= self._options.batch_rows:
                self._flush.cancel()
                self._flush = loop.call_soon(self._run_queue)
            return
        wait = 0.0
        loaded = newest.loaded
        if loaded.is_batchable and not self._is_inline(loaded) and self._gap < self._wait_seconds:
            wait = min(self._wait_seconds, _PATIENCE_GAPS * self._gap)
        # Even without a wait, requests that the loop has read by now come first, and share the call.
        self._flush = loop.call_later(wait, self._run_queue) if wait else loop.call_soon(self._run_queue)

    def _is_inline(self, loaded: LoadedModel) -> bool:
        return loaded.is_steady and loaded.cost.call <= self._inline_seconds

    @staticmethod
    def _expire(waiting: _Waiting) -> None:
        if not waiting.future.done():
            waiting.future.set_exception(PredictionTimeoutError("The model has not answered in time."))

    def _run_queue(self) -> None:
        self._flush = None
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        while (batch := self._take()) is not None:
            loaded = batch[0].loaded
            expected = loaded.cost.seconds(sum(each.rows for each in batch))
            if expected <= self._inline_seconds and loaded.is_steady:
                _deliver(batch, _call(batch))
                if self._queue and time.monotonic() - began > self._inline_seconds:
                    # Let the loop read, answer and keep time in between.
                    self._flush = loop.call_soon(self._run_queue)
                    return
            else:
                self._start(loop, batch)

    def _take(self) -> list[_Waiting] | None:
        """The first request whose model is free, with those that can share its call; None when there is none."""
        while self._queue and self._queue[0].future.done():
            self._queue.popleft()
        first = next(
            (
                each
                for each in self._queue
                if len(self._running.get(id(each.loaded), ())) < each.loaded.concurrency and not each.future.done()
            ),
            None,
        )
        if first is None:
            return None
        self._queue.remove(first)
        batch, rows = [first], first.rows
        if first.loaded.is_batchable and self._queue:
            rest: deque[_Waiting] = deque()
            for each in self._queue:
                if each.future.done():
                    continue
                if rows + each.rows <= self._options.batch_rows and each.fits(first):
                    batch.append(each)
                    rows += each.rows
                else:
                    rest.append(each)
            self._queue = rest
        return batch

    def _start(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> None:
        key, started = id(batch[0].loaded), time.monotonic()
        self._running.setdefault(key, []).append(started)

        def finish(results: Sequence[Outputs | Exception]) -> None:
            calls = self._running[key]
            calls.remove(started)
            if not calls:
                del self._running[key]
            _deliver(batch, results)
            if self._queue and self._flush is None:
                self._plan(loop, self._queue[0])

        def work() -> None:
            results = _call(batch)
            # The loop is closed when the server has given up on this call.
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, results)

        self._workers.run(work)


def _call(batch: list[_Waiting]) -> Sequence[Outputs | Exception]:
    """One result for each request; when a shared call fails, each gets a call of its own, so that one cannot spoil others."""
    if len(batch) == 1:
        return [_run_alone(batch[0])]
    rows = sum(each.rows for each in batch)
    try:
        inputs = {name: np.concatenate([each.inputs[name] for each in batch]) for name in batch[0].inputs}
        outputs = batch[0].loaded.run(inputs)
        if any(not array.ndim or len(array) != rows for array in outputs.values()):
            raise ValueError(f"a call of {rows} rows returned another number of them")
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        logger.debug("a call of %d requests failed, so each gets its own: %s", len(batch), error)
        return [_run_alone(each) for each in batch]
    results: list[Outputs] = []
    start = 0
    for each in batch:
        results.append({name: array[start : start + each.rows] for name, array in outputs.items()})
        start += each.rows
    return results


def _run_alone(waiting: _Waiting) -> Outputs | Exception:
    try:
        return waiting.loaded.run(waiting.inputs)
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises; it is raised again by `predict`
        return error


def _deliver(batch: list[_Waiting], results: Sequence[Outputs | Exception]) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if waiting.future.done():  # timed out, or its client has gone
            continue
        if isinstance(result, Exception):
            waiting.future.set_exception(result)
        else:
            waiting.future.set_result(result)
