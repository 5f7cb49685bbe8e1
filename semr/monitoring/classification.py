"""What a model said, as classes or as forecasts: the common ground of prediction counts, feedback and recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError

#: Key of an MLflow model's metadata by which a forecaster tells that it is one: for each value that it gives, the error up to
#: which a forecast counts as right, separated by commas.
TOLERANCE_KEY = "semr.tolerance"

# Softmax in half precision is off by less than this.
_SUM_TOLERANCE = 5e-3
# Beyond so many classes NumPy is faster than Python for one row.
_FEW_CLASSES = 64


@dataclass(frozen=True)
class Classification:
    """Classes (rows,) int64, and the probability (rows,) of each, None when the model does not tell."""

    classes: npt.NDArray[np.int64]
    confidences: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class Forecast:
    """Forecast values (rows, values) float32, and the error of each value (values,) up to which it counts as right."""

    values: npt.NDArray[np.float32]
    tolerance: tuple[float, ...]


Said = Classification | Forecast


def understand(outputs: Mapping[str, npt.NDArray[Any]], tolerance: tuple[float, ...] | None) -> Said | None:
    """What the outputs say: forecasts of a model that declares a tolerance, else `classify`.

    A forecaster's first output counts, (rows, ...) with as many values a row as tolerances.
    """
    if tolerance is None:
        return classify(outputs)
    output = next(iter(outputs.values()))
    values = output.reshape(len(output), -1).astype(np.float32) if output.ndim else output.reshape(1, 1)
    return Forecast(values, tolerance) if values.shape[1] == len(tolerance) else None


def classify(outputs: Mapping[str, npt.NDArray[Any]]) -> Classification | None:
    """The classes in the outputs of a classifier, None when no output looks like classes.

    The first output counts that is either (rows, classes) with probabilities that add up to 1, or (rows,) of integers.
    """
    for output in outputs.values():
        if output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f":
            is_small = len(output) == 1 and output.shape[1] <= _FEW_CLASSES
            found = _classify_row(output[0].tolist()) if is_small else _classify_rows(output)
            if found is not None:
                return found
        if output.ndim == 1 and output.dtype.kind in "iu":
            return Classification(output.astype(np.int64), None)
    return None


def _classify_row(row: list[float]) -> Classification | None:
    """`classify` for the most usual answer, one row of few classes, where every call into NumPy would count."""
    if min(row) < 0 or not abs(sum(row) - 1) <= _SUM_TOLERANCE:
        return None
    most = max(row)
    return Classification(np.array([row.index(most)], np.int64), np.array([most]))


def _classify_rows(output: npt.NDArray[Any]) -> Classification | None:
    sums = output.sum(axis=1, dtype=np.float64)
    if not ((output >= 0).all() and (np.abs(sums - 1) <= _SUM_TOLERANCE).all()):
        return None
    return Classification(output.argmax(axis=1).astype(np.int64), output.max(axis=1).astype(np.float64))


def parse_tolerance(text: object) -> tuple[float, ...] | None:
    """The tolerances under `TOLERANCE_KEY`, None when a model has none.

    Raises:
        InvalidInputError: they are no numbers from 0 on.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in str(text).split(","))
    except ValueError:
        values = ()
    if not values or not all(0 <= value < float("inf") for value in values):
        raise InvalidInputError(f"The model's metadata {TOLERANCE_KEY} are no numbers from 0 on: {text!r}.")
    return values
