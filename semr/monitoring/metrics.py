"""The numbers of monitoring, one call for each thing that happens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from semr.inference.instruments import (
    CONFIDENCE,
    FEEDBACK,
    FEEDBACK_ERROR,
    FEEDBACK_UNMATCHED,
    INPUT_BINS,
    INPUT_CHANCE_QUANTILE,
    INPUT_REFERENCE_ROWS,
    INPUT_REFERENCE_SHARE,
    INPUT_SCORED_ROWS,
    INPUT_SKIPPED_ROWS,
    MODEL_REFERENCE_ACCURACY,
    MODEL_TRAINED,
    PREDICTIONS,
    RECORDED_ROWS,
    RECORDER_DROPPED_ROWS,
    Instrument,
)
from semr.inference.metrics import Labels, Sink
from semr.monitoring.drift import Counts, ReferenceWindow

#: Classes from here on share the label "other": a series for each integer that a model may say would be too many.
MOST_CLASSES = 256
_OTHER = "other"


class MonitoringMetrics:
    """Numbers of the model `model`, by version."""

    def __init__(self, model: str, sinks: Sequence[Sink]) -> None:
        self._model = model
        self._sinks = tuple(sinks)

    def baseline(
        self, version: str, reference: ReferenceWindow | None, trained: float | None, accuracy: float | None
    ) -> None:
        """What `version` is compared with; called before its first request, so that its counters start from 0."""
        for correct in ("true", "false"):
            self._record(FEEDBACK, 0, version, correct=correct)
        self._record(INPUT_SCORED_ROWS, 0, version)
        self._record(INPUT_SKIPPED_ROWS, 0, version)
        if trained is not None:
            self._record(MODEL_TRAINED, trained, version)
        if accuracy is not None:
            self._record(MODEL_REFERENCE_ACCURACY, accuracy, version)
        if reference is None:
            return
        self._record(INPUT_REFERENCE_ROWS, reference.rows, version)
        for feature in reference.features:
            labels = {"group": feature.group, "feature": feature.name}
            self._record(INPUT_CHANCE_QUANTILE, reference.chance_quantile(feature), version, **labels)
            for index, ratio in enumerate(feature.ratios):
                self._record(INPUT_REFERENCE_SHARE, float(ratio), version, **labels, bin=_bin_label(index))
                self._record(INPUT_BINS, 0, version, **labels, bin=_bin_label(index))

    def forget(self, version: str) -> None:
        """`version` is no longer watched: its gauges go, its counters stay, for they must not go back."""
        for sink in self._sinks:
            sink.forget({"model": self._model, "version": version})

    def predicted(self, version: str, classes: npt.NDArray[np.int64]) -> None:
        """`version` predicted these classes (rows,)."""
        named = np.where((classes >= 0) & (classes < MOST_CLASSES), classes, MOST_CLASSES)
        for index, count in enumerate(np.bincount(named)):
            if count:
                self._record(PREDICTIONS, int(count), version, output=_OTHER if index == MOST_CLASSES else str(index))

    def confident(self, version: str, confidences: npt.NDArray[np.float64]) -> None:
        """`version` predicted with these probabilities (rows,)."""
        for confidence in confidences.tolist():
            self._record(CONFIDENCE, confidence, version)

    def binned(self, version: str, reference: ReferenceWindow, counts: tuple[Counts, ...]) -> None:
        """Inputs of `version` were compared with its reference."""
        for feature, bins in zip(reference.features, counts, strict=True):
            labels = {"group": feature.group, "feature": feature.name}
            for index in np.flatnonzero(bins).tolist():
                self._record(INPUT_BINS, int(bins[index]), version, **labels, bin=_bin_label(index))
        self._record(INPUT_SCORED_ROWS, int(counts[0].sum()), version)

    def skipped(self, version: str, rows: int) -> None:
        """Inputs were not compared."""
        self._record(INPUT_SKIPPED_ROWS, rows, version)

    def feedback(self, version: str, examples: int, correct: int) -> None:
        """Labels came for predictions of `version`."""
        self._record(FEEDBACK, correct, version, correct="true")
        self._record(FEEDBACK, examples - correct, version, correct="false")

    def missed(self, version: str, errors: npt.NDArray[np.float64]) -> None:
        """Forecasts of `version` had these absolute errors (rows, values)."""
        for index, total in enumerate(errors.sum(axis=0).tolist()):
            self._record(FEEDBACK_ERROR, total, version, output=str(index))

    def unmatched(self) -> None:
        """Feedback came that belongs to no prediction."""
        self._send(FEEDBACK_UNMATCHED, 1, {"model": self._model})

    def recorded(self, kind: str, rows: int) -> None:
        """Rows of `kind` are in the object store."""
        self._send(RECORDED_ROWS, rows, {"model": self._model, "kind": kind})

    def dropped(self, kind: str, rows: int) -> None:
        """Rows of `kind` are not recorded."""
        self._send(RECORDER_DROPPED_ROWS, rows, {"model": self._model, "kind": kind})

    def _record(self, instrument: Instrument, value: float, version: str, **labels: str) -> None:
        self._send(instrument, value, {"model": self._model, "version": version, **labels})

    def _send(self, instrument: Instrument, value: float, labels: Labels) -> None:
        for sink in self._sinks:
            sink.record(instrument, value, labels)


def _bin_label(index: int) -> str:
    # Two digits, so that bins sort as they lie.
    return f"{index:02d}"
