"""What a model server counts, by name. Rules, dashboards and queries rely on these names.

What is aggregated over replicas is a counter: counts of replicas add up, averages of them do not. Windows are made by
Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Instrument:
    """Name, kind, help text, labels, and for a histogram its upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ("model", "version")
    buckets: tuple[float, ...] = ()


REQUESTS = Instrument(
    "semr_inference_requests_total", "counter", "Requests answered, by HTTP status.", ("model", "version", "status")
)
IN_FLIGHT = Instrument(
    "semr_inference_requests_in_flight",
    "gauge",
    "Requests to infer that were admitted and not answered yet; what replicas are scaled by. Ray Serve counts its own.",
    ("model",),
)
LATENCY = Instrument(
    "semr_inference_latency_seconds",
    "histogram",
    "Time from a parsed request to its answer, in seconds.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
BATCH_SIZE = Instrument(
    "semr_inference_batch_size", "histogram", "Examples in a request.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
)
MODEL_INFO = Instrument("semr_model_info", "gauge", "1 for the model version that is served.")
LOAD_FAILURES = Instrument(
    "semr_model_load_failures_total", "counter", "Versions that could not be loaded and were not switched to."
)
MODEL_TRAINED = Instrument(
    "semr_model_trained_timestamp_seconds", "gauge", "When the training of the version ended, in seconds since 1970."
)
MODEL_REFERENCE_ACCURACY = Instrument(
    "semr_model_reference_accuracy", "gauge", "Accuracy of the version on its holdout when it was trained."
)

PREDICTIONS = Instrument(
    "semr_predictions_total", "counter", "Examples by predicted class.", ("model", "version", "output")
)
CONFIDENCE = Instrument(
    "semr_prediction_confidence",
    "histogram",
    "Probability that the model gives the class it predicts; large batches are sampled.",
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
)

_BIN = ("model", "version", "group", "feature", "bin")
_FEATURE = ("model", "version", "group", "feature")

INPUT_BINS = Instrument(
    "semr_input_bin_total", "counter", "Examples whose feature is in this bin of the reference window.", _BIN
)
INPUT_REFERENCE_SHARE = Instrument(
    "semr_input_reference_ratio", "gauge", "Smoothed share of the reference window in this bin.", _BIN
)
INPUT_REFERENCE_ROWS = Instrument("semr_input_reference_rows", "gauge", "Examples in the reference window.")
INPUT_CHANCE_QUANTILE = Instrument(
    "semr_input_chance_quantile",
    "gauge",
    "What PSI / (1 / live rows + 1 / reference rows) hardly ever exceeds without drift (quantile of chi-square).",
    _FEATURE,
)
INPUT_SCORED_ROWS = Instrument(
    "semr_input_scored_rows_total", "counter", "Examples that were compared with the reference."
)
INPUT_SKIPPED_ROWS = Instrument(
    "semr_input_skipped_rows_total",
    "counter",
    "Examples that were sampled out, found the queue full, or cannot be compared.",
)

FEEDBACK = Instrument(
    "semr_feedback_total",
    "counter",
    "Labels that came in, by whether the version had predicted them (forecasts: within their tolerance).",
    ("model", "version", "correct"),
)
FEEDBACK_ERROR = Instrument(
    "semr_feedback_absolute_error_total",
    "counter",
    "Absolute errors of forecasts whose truth came in, added up by forecast value; divided by the labels their mean.",
    ("model", "version", "output"),
)
FEEDBACK_UNMATCHED = Instrument(
    "semr_feedback_unmatched_total", "counter", "Feedback that belongs to no prediction of the model.", ("model",)
)
RECORDED_ROWS = Instrument(
    "semr_recorder_rows_total", "counter", "Rows written to the object store.", ("model", "kind")
)
RECORDER_DROPPED_ROWS = Instrument(
    "semr_recorder_dropped_rows_total",
    "counter",
    "Rows not recorded: above the limit of rows per second, or while the object store was away.",
    ("model", "kind"),
)

INSTRUMENTS = (
    REQUESTS,
    IN_FLIGHT,
    LATENCY,
    BATCH_SIZE,
    MODEL_INFO,
    LOAD_FAILURES,
    MODEL_TRAINED,
    MODEL_REFERENCE_ACCURACY,
    PREDICTIONS,
    CONFIDENCE,
    INPUT_BINS,
    INPUT_REFERENCE_SHARE,
    INPUT_REFERENCE_ROWS,
    INPUT_CHANCE_QUANTILE,
    INPUT_SCORED_ROWS,
    INPUT_SKIPPED_ROWS,
    FEEDBACK,
    FEEDBACK_ERROR,
    FEEDBACK_UNMATCHED,
    RECORDED_ROWS,
    RECORDER_DROPPED_ROWS,
)
