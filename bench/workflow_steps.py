"""Times of the steps of the MNIST workflow at its defaults, and what one request to the served model takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from bench.measure import Measurement
from workflow_examples.mnist import pipeline
from workflow_examples.mnist.train import TrainConfig

MODEL = "mnist-bench"

Result = TypeVar("Result")


def measure(runs: int) -> list[Measurement]:
    """Run the workflow `runs` times on the digits."""
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Result]) -> Result:
        started = time.perf_counter()
        result = work()
        times.setdefault(name, []).append(time.perf_counter() - started)
        return result

    p50: list[float] = []
    p99: list[float] = []
    for _ in range(runs):
        started = time.perf_counter()
        raw = timed("ingest", lambda: pipeline.ingest("digits"))
        dataset = timed("prepare", lambda raw=raw: pipeline.prepare(raw, _quiet))
        run_id = timed("train", lambda dataset=dataset: pipeline.train(TrainConfig(dataset), _quiet))
        timed("evaluate", lambda r=run_id, d=dataset: pipeline.evaluate(r, d, 0.0, _quiet))
        model = timed("register", lambda r=run_id, d=dataset: pipeline.register(r, MODEL, d))
        deployment = timed("deploy", lambda model=model: pipeline.deploy(model, replicas=1))
        timed("verify", lambda d=deployment, v=dataset: pipeline.verify(d, v))
        times.setdefault("mnist_train, all steps", []).append(time.perf_counter() - started)
        report = pipeline.probe(deployment, dataset, 200)
        p50.append(report.p50_milliseconds / 1000)
        p99.append(report.p99_milliseconds / 1000)
    return [
        *(Measurement(name, seconds) for name, seconds in times.items()),
        Measurement("request, p50 of 200", p50),
        Measurement("request, p99 of 200", p99),
    ]


def _quiet(_: str) -> None:
    """The jobs' logs are not what is measured."""
