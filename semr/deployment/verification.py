"""Is a deployed model what it should be? Real requests with real examples, and the way back when it is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from semr.deployment.target import DeploymentError, DeploymentTarget
from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.inference.client import InferenceClient, InferenceError
from semr.registry import ModelVersionRef, Registry


class VerificationError(DeploymentError):
    """A deployed version did not answer as it should; the version before it is served again."""


@dataclass(frozen=True)
class ProbeReport:
    """What a number of requests, one example each, came to.

    Attributes:
        requests: how many were sent.
        failed: how many had no answer, or an error.
        accuracy: share of the answered ones that were right.
        p50_milliseconds, p99_milliseconds: percentiles of the time to an answer, as the client sees it.
        versions: model versions that answered, comma-separated.
        first_error: what the first failed request came back with, "" when none failed.
    """

    requests: int
    failed: int
    accuracy: float
    p50_milliseconds: float
    p99_milliseconds: float
    versions: str
    first_error: str


def probe_classifier(
    url: str, model: str, examples: npt.NDArray[Any], labels: npt.NDArray[np.integer[Any]], requests: int
) -> ProbeReport:
    """`probe_model` for a classifier, whose first output are scores (1, classes), by true classes (rows,)."""
    return probe_model(url, model, examples, lambda scores, row: scores.argmax() == labels[row], requests)


def probe_model(
    url: str, model: str, examples: npt.NDArray[Any], is_right: Callable[[npt.NDArray[Any], int], Any], requests: int
) -> ProbeReport:
    """Send `requests` requests one after the other, going round the examples, and judge the answers.

    Args:
        url: what stands before `/v2`.
        model: its name.
        examples: inputs (rows, ...) as the model takes them.
        is_right: whether the first output (1, ...) is right for the example of that row.
        requests: at least 1.

    Raises:
        InvalidInputError: no examples, or `requests` below 1.
        DependencyUnavailableError: the server does not even tell the model's metadata.
        InferenceError: likewise, with the server's reason.
    """
    if requests < 1 or not len(examples):
        raise InvalidInputError("A probe needs at least one example and one request.")
    right = answered = 0
    seconds: list[float] = []
    versions: set[str] = set()
    first_error = ""
    with InferenceClient(url, model) as client:
        input_name = client.metadata().inputs[0].name
        for index in range(requests):
            row = index % len(examples)
            started = time.perf_counter()
            try:
                prediction = client.infer({input_name: examples[row : row + 1]})
            except (InferenceError, DependencyUnavailableError) as error:
                first_error = first_error or str(error)
                continue
            seconds.append(time.perf_counter() - started)
            answered += 1
            versions.add(prediction.version)
            right += bool(is_right(next(iter(prediction.outputs.values())), row))
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000 if seconds else (float("nan"), float("nan"))
    return ProbeReport(
        requests=requests,
        failed=requests - answered,
        accuracy=right / answered if answered else 0.0,
        p50_milliseconds=float(p50),
        p99_milliseconds=float(p99),
        versions=",".join(sorted(versions)),
        first_error=first_error,
    )


def check_or_restore(
    target: DeploymentTarget, registry: Registry, ref: ModelVersionRef, report: ProbeReport, least_accuracy: float
) -> None:
    """Make `ref` the champion if the probe of its deployment went well, else serve the version before it again.

    Raises:
        VerificationError: a request failed, another version answered, or the accuracy is below `least_accuracy`.
    """
    problem = _problem(ref, report, least_accuracy)
    if not problem:
        registry.promote(ref)
        return
    what_now = serve_champion_again(target, registry, ref)
    registry.set_tags(ref, {"semr.verification": problem})
    raise VerificationError(f"{ref.uri} did not pass verification: {problem}; {what_now}.")


def serve_champion_again(target: DeploymentTarget, registry: Registry, instead_of: ModelVersionRef) -> str:
    """Serve the champion in place of `instead_of`, or nothing when there is no champion; returns what was done."""
    champion = registry.find(instead_of.name, "champion")
    if champion is None:
        target.remove(instead_of.name)
        return "there was no version before it, so the model is not served"
    target.deploy(champion)
    return f"version {champion.version} is served again"


def _problem(ref: ModelVersionRef, report: ProbeReport, least_accuracy: float) -> str:
    if report.failed:
        return f"{report.failed} of {report.requests} requests failed, the first with: {report.first_error}"
    if report.versions != ref.version:
        return f"version {report.versions} answered in place of {ref.version}"
    if report.accuracy < least_accuracy:
        return f"accuracy {report.accuracy:.4f} on real requests is below {least_accuracy:.4f}"
    return ""
