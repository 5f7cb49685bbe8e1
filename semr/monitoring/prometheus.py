"""Ask Prometheus: instant queries and ranges through its HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.settings import Settings, get_settings

_TRIES = 4


@dataclass(frozen=True)
class Sample:
    """One series of an answer: its labels and its value now."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Series:
    """One series of a range: its labels, Unix times in seconds, and the values at those."""

    labels: dict[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]


@dataclass
class Prometheus:
    """Client of one Prometheus server.

    Every method raises `DependencyUnavailableError` when it does not answer in four tries (0.5 + 1 + 2 s between them) and
    `InvalidInputError` for an expression that it cannot parse.
    """

    settings: Settings = field(default_factory=get_settings)

    def query(self, expression: str) -> list[Sample]:
        """All series of an instant query that have a finite value."""
        answer = self._ask("/api/v1/query", {"query": expression})
        samples = [Sample(dict(each["metric"]), float(each["value"][1])) for each in answer]
        return [sample for sample in samples if math.isfinite(sample.value)]

    def value(self, expression: str) -> float | None:
        """The sum over all series of an instant query; None when there is none with a finite value."""
        samples = self.query(expression)
        return sum(sample.value for sample in samples) if samples else None

    def range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """Series from `start` to `end` (Unix times in seconds) every `step` seconds, finite values only."""
        parameters = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:g}"}
        found = []
        for each in self._ask("/api/v1/query_range", parameters):
            points = [(float(at), float(text)) for at, text in each["values"]]
            points = [(at, value) for at, value in points if math.isfinite(value)]
            found.append(
                Series(dict(each["metric"]), tuple(at for at, _ in points), tuple(value for _, value in points))
            )
        return found

    def _ask(self, path: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        url = self.settings.need("prometheus_url")
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            try:
                answer = httpx.post(url + path, data=parameters, timeout=10.0)
                content = answer.json()
            except (httpx.HTTPError, ValueError) as error:
                reason = str(error) or type(error).__name__
                continue
            if content.get("errorType") == "bad_data":
                raise InvalidInputError(f"Prometheus cannot read {parameters['query']!r}: {content['error']}.")
            if content.get("status") == "success":
                result: list[dict[str, Any]] = content["data"]["result"]
                return result
            reason = str(content.get("error", answer.status_code))
        raise DependencyUnavailableError("Prometheus", url, reason)
