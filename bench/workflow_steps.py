"""Times of the steps of the MNIST workflow at its defaults, and what one request to the served model takes."""

from __future__ import annotations

import time

from bench.measure import Measurement, Times
from workflow_examples.mnist import pipeline
from workflow_examples.mnist.train import TrainConfig

MODEL = "mnist-bench"


def measure(runs: int) -> list[Measurement]:
    """Run the workflow `runs` times on the digits."""
    times = Times()
    p50: list[float] = []
    p99: list[float] = []
    for _ in range(runs):
        started = time.perf_counter()
        raw = times.timed("ingest", pipeline.ingest, "digits")
        dataset = times.timed("prepare", pipeline.prepare, raw, _quiet)
        run_id = times.timed("train", pipeline.train, TrainConfig(dataset), _quiet)
        times.timed("evaluate", pipeline.evaluate, run_id, dataset, 0.0, _quiet)
        model = times.timed("register", pipeline.register, run_id, MODEL, dataset)
        deployment = times.timed("deploy", pipeline.deploy, model, replicas=1)
        times.timed("verify", pipeline.verify, deployment, dataset)
        times.add("mnist_train, all steps", time.perf_counter() - started)
        report = pipeline.probe(deployment, dataset, 200)
        p50.append(report.p50_milliseconds / 1000)
        p99.append(report.p99_milliseconds / 1000)
    return [
        *(Measurement(name, seconds) for name, seconds in times.seconds.items()),
        Measurement("request, p50 of 200", p50),
        Measurement("request, p99 of 200", p99),
    ]


def _quiet(_: str) -> None:
    """The jobs' logs are not what is measured."""
