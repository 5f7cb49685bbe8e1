"""The PromQL that code asks, by name. Windows of recording rules have the length that `helm_charts/SEMR/rules` gives them."""

from __future__ import annotations


def input_drift(model: str) -> str:
    """Largest PSI of a feature, for each version."""
    return f"semr:input_drift:overall{{{_label('model', model)}}}"


def window_accuracy(model: str) -> str:
    """Accuracy by feedback in the rules' window, for each version."""
    return f"semr:accuracy:window{{{_label('model', model)}}}"


def window_latency_p99(model: str) -> str:
    """99th percentile of the latency in seconds in the rules' window, for each version."""
    return f"semr:latency_p99:window{{{_label('model', model)}}}"


def firing_alerts(model: str) -> str:
    """1 for each alert that asks for a retraining of the model and fires, with its labels."""
    return f'ALERTS{{semr="evolution", alertstate="firing", {_label("model", model)}}}'


def requests(model: str, version: str, seconds: float | None, status: str = ".*") -> str:
    """Requests to a version in the last `seconds`, or since it was deployed; `status` is a regular expression."""
    return _count("semr_inference_requests_total", model, version, seconds, f', status=~"{status}"')


def labels(model: str, version: str, seconds: float | None, correct: str = ".*") -> str:
    """Labelled predictions of a version in the last `seconds`, or since it was deployed; `correct` is true, false or both."""
    return _count("semr_feedback_total", model, version, seconds, f', correct=~"{correct}"')


def _count(metric: str, model: str, version: str, seconds: float | None, matcher: str) -> str:
    series = f"{metric}{{{_label('model', model)}, {_label('version', version)}{matcher}}}"
    return f"sum({series})" if seconds is None else f"sum(increase({series}[{max(1, round(seconds * 1000))}ms]))"


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{escaped}"'
