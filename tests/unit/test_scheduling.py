"""Which requests share a call of the model, and that none spoils or holds up another."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from semr.inference.options import ServerOptions, load_options
from semr.inference.protocol import TensorMetadata
from semr.inference.runtime import Cost, LoadedModel
from semr.inference.scheduling import PredictionTimeoutError, Scheduler
from semr.inference.tensors import Array
from semr.registry import ModelVersionRef


class Doubler:
    """A model that remembers the rows of its calls."""

    def __init__(
        self, version: str = "1", seconds: float = 0.02, *, is_batchable: bool = True, is_steady: bool = False
    ) -> None:
        self.calls: list[int] = []
        self.seconds = seconds
        self.released = threading.Event()
        self.loaded = LoadedModel(
            ref=ModelVersionRef("doubler", version, f"models:/doubler/{version}", "run", {}),
            platform="test",
            inputs=(TensorMetadata(name="x", datatype="FP32", shape=[-1, -1]),),
            outputs=(TensorMetadata(name="y", datatype="FP32", shape=[-1, -1]),),
            _predict=self._predict,
            is_batchable=is_batchable,
            is_steady=is_steady,
            cost=Cost(seconds, seconds / 10),
        )

    def _predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        self.calls.append(len(x))
        if (x == -1).any():
            raise RuntimeError("bad row")
        if (x == -2).any():
            self.released.wait(10)
        time.sleep(self.seconds)
        return {"y": x * 2 + (int(self.loaded.ref.version) - 1) * 1000}


def row(value: float, width: int = 1) -> dict[str, Array]:
    return {"x": np.full((1, width), value, np.float32)}


def ask_all(
    doubler: Doubler, values: list[float], options: ServerOptions | None = None
) -> list[dict[str, Array] | BaseException]:
    async def run() -> list[dict[str, Array] | BaseException]:
        scheduler = Scheduler(options or load_options())
        asked = (scheduler.predict(doubler.loaded, row(value), 1) for value in values)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(run())


@pytest.mark.parametrize("seconds", [0.0005, 0.02])
def test_requests_at_the_same_time_share_calls_and_get_their_own_rows(seconds: float) -> None:
    """Short calls run in the loop's thread, long ones in another."""
    doubler = Doubler(seconds=seconds, is_steady=True)
    answers = ask_all(doubler, list(range(10)))
    assert [answer["y"].tolist() for answer in answers] == [[[2.0 * value]] for value in range(10)]
    assert sum(doubler.calls) == 10
    assert len(doubler.calls) <= 2


def test_a_model_that_is_not_batchable_gets_one_request_at_a_time() -> None:
    doubler = Doubler(is_batchable=False)
    ask_all(doubler, [1, 2, 3])
    assert doubler.calls == [1, 1, 1]


def test_a_call_has_no_more_rows_than_the_limit() -> None:
    doubler = Doubler()
    ask_all(doubler, [1] * 10, load_options(batch_rows=4))
    assert max(doubler.calls) == 4
    assert sum(doubler.calls) == 10


def test_a_request_that_makes_the_model_fail_fails_alone() -> None:
    answers = ask_all(Doubler(), [1, -1, 3])
    assert answers[0]["y"].tolist() == [[2.0]]
    assert isinstance(answers[1], RuntimeError)
    assert answers[2]["y"].tolist() == [[6.0]]


def test_requests_of_other_widths_do_not_share_a_call() -> None:
    doubler = Doubler()

    async def run() -> list[dict[str, Array]]:
        scheduler = Scheduler(load_options())
        asked = (scheduler.predict(doubler.loaded, row(width, width), 1) for width in (1, 2, 1, 2))
        return await asyncio.gather(*asked)

    assert [answer["y"].shape for answer in asyncio.run(run())] == [(1, 1), (1, 2), (1, 1), (1, 2)]
    assert doubler.calls == [2, 2]


def test_versions_never_share_a_call() -> None:
    first, second = Doubler("1"), Doubler("2")

    async def run() -> list[dict[str, Array]]:
        scheduler = Scheduler(load_options())
        asked = (scheduler.predict((first, second)[index % 2].loaded, row(index), 1) for index in range(8))
        return await asyncio.gather(*asked)

    answers = asyncio.run(run())
    assert [float(answer["y"][0, 0]) for answer in answers] == [2 * index + 1000 * (index % 2) for index in range(8)]
    assert sum(first.calls) == sum(second.calls) == 4


def test_a_request_that_waits_too_long_ends_and_its_call_holds_up_no_other_version() -> None:
    stuck, other = Doubler("1"), Doubler("2")

    async def run() -> None:
        scheduler = Scheduler(load_options(timeout_s=0.3))
        first = asyncio.create_task(scheduler.predict(stuck.loaded, row(-2), 1))
        await asyncio.sleep(0.1)
        queued = asyncio.create_task(scheduler.predict(stuck.loaded, row(1), 1))
        answer = await scheduler.predict(other.loaded, row(1), 1)
        assert answer["y"].tolist() == [[1002.0]]
        for task in (first, queued):
            with pytest.raises(PredictionTimeoutError):
                await task
        assert scheduler.running_seconds > 0.2
        stuck.released.set()
        while scheduler.running_seconds:
            await asyncio.sleep(0.01)
        # The one that gave up in the queue never reached the model; the model is free again.
        assert (await scheduler.predict(stuck.loaded, row(4), 1))["y"].tolist() == [[8.0]]

    asyncio.run(run())
    assert stuck.calls == [1, 1]


def test_a_lone_request_waits_for_nobody() -> None:
    doubler = Doubler(seconds=0.01)

    async def run() -> float:
        scheduler = Scheduler(load_options(batch_wait_ms=1000))
        started = time.perf_counter()
        await scheduler.predict(doubler.loaded, row(1), 1)
        return time.perf_counter() - started

    # A second of waiting would show on any machine.
    assert asyncio.run(run()) < 0.9
