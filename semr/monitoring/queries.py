"""What code asks Prometheus: the PromQL by name, and a client with bounded retries.

Windows of recording rules have the length that `helm_charts/SEMR/rules` gives them; the functions here that take a number of
seconds choose their own, as the verification of a deployment does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.settings import Settings, get_settings

_SERVICE = "Prometheus"
_TRIES = 4
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Sample:
    """A value at a time in seconds since 1970, with the labels of its series."""

    labels: Mapping[str, str]
    time: float
    value: float


@dataclass(frozen=True)
class Series:
    """The samples of one series, oldest first."""

    labels: Mapping[str, str]
    samples: tuple[Sample, ...]


def input_drift(model: str) -> str:
    """Largest PSI of a feature, for each version."""
    return f"semr:input_drift:overall{{{_label('model', model)}}}"


def input_drift_by_group(model: str) -> str:
    """Largest PSI of each group of features, for each version."""
    return f"semr:input_drift:group{{{_label('model', model)}}}"


def window_accuracy(model: str) -> str:
    """Accuracy by feedback in the rules' window, for each version."""
    return f"semr:accuracy:window{{{_label('model', model)}}}"


def window_latency_p99(model: str) -> str:
    """99th percentile of the latency in seconds in the rules' window, for each version."""
    return f"semr:latency_p99:window{{{_label('model', model)}}}"


def request_rate(model: str) -> str:
    """Requests per second, for each version."""
    return f"semr:requests:rate{{{_label('model', model)}}}"


def served_versions(model: str) -> str:
    """1 for each version that a replica serves."""
    return f"semr:model_served{{{_label('model', model)}}}"


def firing_alerts(model: str) -> str:
    """1 for each alert about the model that fires, with its labels."""
    return f'ALERTS{{semr="evolution", alertstate="firing", {_label("model", model)}}}'


def accuracy(model: str, version: str, seconds: float) -> str:
    """Share of the labels of the last `seconds` that the version had predicted; NaN without labels."""
    matchers = _version(model, version)
    right = f'sum(increase(semr_feedback_total{{{matchers}, correct="true"}}{_range(seconds)}))'
    return f"{right} / {feedback_rows(model, version, seconds)}"


def feedback_rows(model: str, version: str, seconds: float) -> str:
    """Labels of the last `seconds`."""
    return f"sum(increase(semr_feedback_total{{{_version(model, version)}}}{_range(seconds)}))"


def requests(model: str, version: str, seconds: float) -> str:
    """Requests of the last `seconds`."""
    return f"sum(increase(semr_inference_requests_total{{{_version(model, version)}}}{_range(seconds)}))"


def error_ratio(model: str, version: str, seconds: float) -> str:
    """Share of the requests of the last `seconds` that failed by the server's fault; NaN without requests."""
    matchers = _version(model, version)
    failed = f'sum(increase(semr_inference_requests_total{{{matchers}, status=~"5.."}}{_range(seconds)}))'
    return f"({failed} or vector(0)) / {requests(model, version, seconds)}"


def latency_quantile(model: str, version: str, quantile: float, seconds: float) -> str:
    """Quantile (0 to 1) of the latency in seconds over the last `seconds`; NaN without requests."""
    buckets = f"semr_inference_latency_seconds_bucket{{{_version(model, version)}}}{_range(seconds)}"
    return f"histogram_quantile({quantile}, sum by (le) (increase({buckets})))"


@dataclass
class Prometheus:
    """The Prometheus of the contract. Every method raises `DependencyUnavailableError` when it does not answer."""

    settings: Settings = field(default_factory=get_settings)

    def instant(self, expression: str) -> list[Sample]:
        """The values of an expression now.

        Raises:
            InvalidInputError: Prometheus does not understand it.
        """
        result = self._ask("/api/v1/query", {"query": expression})
        return [_sample(each["metric"], each["value"]) for each in result]

    def value(self, expression: str) -> float | None:
        """The only value of an expression now; None when there is none, or it is not a number.

        Raises:
            InvalidInputError: it has several values, or Prometheus does not understand it.
        """
        samples = self.instant(expression)
        if len(samples) > 1:
            raise InvalidInputError(f"{expression!r} has {len(samples)} values where one is wanted: aggregate it.")
        return samples[0].value if samples and math.isfinite(samples[0].value) else None

    def history(self, expression: str, start: float, end: float, step_seconds: float) -> list[Series]:
        """The values from `start` to `end` (seconds since 1970); at most 11,000 steps.

        Raises:
            InvalidInputError: Prometheus does not understand it.
        """
        parameters = {"query": expression, "start": str(start), "end": str(end), "step": str(step_seconds)}
        return [
            Series(each["metric"], tuple(_sample(each["metric"], pair) for pair in each["values"]))
            for each in self._ask("/api/v1/query_range", parameters)
        ]

    def _ask(self, path: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        """One question, asked again when there is no answer: 0.5 + 1 + 2 s between four tries."""
        url = self.settings.need("prometheus_url")
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            try:
                answer = httpx.post(url + path, data=parameters, timeout=_TIMEOUT_SECONDS)
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                continue
            if answer.is_success:
                found: list[dict[str, Any]] = answer.json()["data"]["result"]
                return found
            reason = f"{answer.status_code} {' '.join(answer.text.split())[:300]}"
            if answer.status_code in (400, 422):
                raise InvalidInputError(f"{_SERVICE} refuses {parameters['query']!r}: {reason}")
        raise DependencyUnavailableError(_SERVICE, url, reason)


def _sample(labels: dict[str, str], pair: tuple[float, str]) -> Sample:
    return Sample(labels, float(pair[0]), float(pair[1]))


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{escaped}"'


def _version(model: str, version: str) -> str:
    return f"{_label('model', model)}, {_label('version', version)}"


def _range(seconds: float) -> str:
    return f"[{max(1, round(seconds * 1000))}ms]"
