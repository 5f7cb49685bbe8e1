"""Ground truth: labels or true values that come in after a prediction, joined with it by its prediction id."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from semr.errors import InvalidInputError
from semr.monitoring import prediction_id
from semr.monitoring.classification import Classification, Forecast

#: Ids that are remembered to ignore their repetition; about 6 MB.
REMEMBERED_IDS = 65_536
#: Labels are stored as int32.
_LABEL_LIMIT = 2**31


class FeedbackRequest(BaseModel):
    """Body of `POST /v2/models/{model}/feedback`.

    For a classifier one of `label`, for a request of one example, and `labels`; for a forecaster `values`, for each example
    the list of the true values. `labels` and `values` have one entry for each example of the request, None where the truth
    is not known.
    """

    model_config = ConfigDict(extra="forbid")

    prediction_id: str = Field(min_length=1, max_length=prediction_id.MOST_CHARACTERS)
    label: int | None = Field(default=None, ge=-_LABEL_LIMIT, lt=_LABEL_LIMIT, strict=True)
    labels: list[int | None] | None = Field(default=None, min_length=1)
    values: list[list[FiniteFloat] | None] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> FeedbackRequest:
        if sum(each is not None for each in (self.label, self.labels, self.values)) != 1:
            raise ValueError("give `label`, `labels` or `values`, and only one of them")
        if any(label is not None and not -_LABEL_LIMIT <= label < _LABEL_LIMIT for label in self.labels or ()):
            raise ValueError("labels are 32 bit integers")
        return self

    @property
    def all_labels(self) -> list[int | None]:
        """One label for each example."""
        return self.labels if self.labels is not None else [self.label]


class FeedbackResponse(BaseModel):
    """Answer to feedback.

    Attributes:
        model_version: version that had predicted.
        examples: labels that were counted.
        correct: how many of them are what was predicted, or near enough to it.
        duplicate: whether this id had its labels before; then nothing was counted.
    """

    model_name: str
    model_version: str
    examples: int
    correct: int
    duplicate: bool


@dataclass(frozen=True)
class Judged:
    """Truth and predictions of a request, joined.

    Attributes:
        prediction: what was predicted.
        rows: rows of the request whose truth is known (rows,).
        truth: their labels (rows,) int32, or true values (rows, values) float32.
        is_duplicate: whether this prediction had its truth before.
    """

    prediction: prediction_id.PredictionId
    rows: npt.NDArray[np.int32]
    truth: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    is_duplicate: bool

    @property
    def errors(self) -> npt.NDArray[np.float64] | None:
        """Absolute errors of forecasts (rows, values), None for classes."""
        said = self.prediction.said
        if not isinstance(said, Forecast):
            return None
        return np.abs(said.values[self.rows].astype(np.float64) - self.truth)

    @property
    def correct(self) -> int:
        """How many labels are what was predicted, or forecasts whose errors are all within their tolerance."""
        said = self.prediction.said
        if said is None:
            return 0
        if isinstance(said, Classification):
            return int((said.classes[self.rows] == self.truth).sum())
        return int(
            (np.abs(said.values[self.rows] - self.truth) <= np.array(said.tolerance, np.float32)).all(axis=1).sum()
        )


class FeedbackJudge:
    """Joins labels with predictions of `model`.

    Repetitions are known by a bounded memory of this process: with several replicas a client that sends twice may be counted
    twice.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def judge(self, request: FeedbackRequest) -> Judged:
        """Join the truth with the prediction.

        Raises:
            InvalidInputError: the id is not one of this model, it did not predict what there is a truth to, the feedback is of
                the other kind, or the number of examples or values is wrong.
        """
        prediction = prediction_id.parse(self._model, request.prediction_id)
        said = prediction.said
        if said is None:
            raise InvalidInputError(
                f"Model {self._model!r} gave no classes and no forecast with this prediction, so there is no truth to it."
            )
        is_forecast = isinstance(said, Forecast)
        told = request.values if request.values is not None else request.all_labels
        if is_forecast != (request.values is not None):
            wanted = "values" if is_forecast else "labels"
            raise InvalidInputError(f"Model {self._model!r} takes `{wanted}` as feedback.")
        count = len(said.values) if isinstance(said, Forecast) else len(said.classes)
        if len(told) != count:
            raise InvalidInputError(f"The prediction has {count} examples, the feedback {len(told)}.")
        known = [row for row, truth in enumerate(told) if truth is not None]
        width = len(said.tolerance) if isinstance(said, Forecast) else 1
        if is_forecast and any(len(truth) != width for truth in request.values or () if truth is not None):
            raise InvalidInputError(f"Model {self._model!r} forecasts {width} values for each example: give as many.")
        truth: Any = [told[row] for row in known]
        return Judged(
            prediction=prediction,
            rows=np.asarray(known, np.int32),
            truth=np.asarray(truth, np.float32).reshape(-1, width) if is_forecast else np.asarray(truth, np.int32),
            is_duplicate=self._is_duplicate(prediction.nonce),
        )

    def _is_duplicate(self, nonce: bytes) -> bool:
        with self._lock:
            if nonce in self._seen:
                self._seen.move_to_end(nonce)
                return True
            self._seen[nonce] = None
            if len(self._seen) > REMEMBERED_IDS:
                self._seen.popitem(last=False)
            return False
