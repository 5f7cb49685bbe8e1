"""Ground truth: labels that come in after a prediction, joined with it by its prediction id."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from semr.errors import InvalidInputError
from semr.monitoring import prediction_id

#: Ids that are remembered to ignore their repetition; about 6 MB.
REMEMBERED_IDS = 65_536
#: Labels are stored as int32.
_LABEL_LIMIT = 2**31


class FeedbackRequest(BaseModel):
    """Body of `POST /v2/models/{model}/feedback`: one of `label`, for a request of one example, and `labels`.

    `labels` has one entry for each example of the request, None where the truth is not known.
    """

    model_config = ConfigDict(extra="forbid")

    prediction_id: str = Field(min_length=1, max_length=prediction_id.MOST_CHARACTERS)
    label: int | None = Field(default=None, ge=-_LABEL_LIMIT, lt=_LABEL_LIMIT, strict=True)
    labels: list[int | None] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> FeedbackRequest:
        if (self.label is None) == (self.labels is None):
            raise ValueError("give `label` or `labels`, and not both")
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
        correct: how many of them are what was predicted.
        duplicate: whether this id had its labels before; then nothing was counted.
    """

    model_name: str
    model_version: str
    examples: int
    correct: int
    duplicate: bool


@dataclass(frozen=True)
class Judged:
    """Labels and predictions of a request, joined: rows of the request (rows,), their labels and predicted classes."""

    prediction: prediction_id.PredictionId
    rows: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    is_duplicate: bool

    @property
    def correct(self) -> int:
        """How many labels are what was predicted."""
        classes = self.prediction.classes
        return 0 if classes is None else int((classes[self.rows] == self.labels).sum())


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
        """Join the labels with the classes of the prediction.

        Raises:
            InvalidInputError: the id is not one of this model, it did not classify, or the number of labels is wrong.
        """
        prediction = prediction_id.parse(self._model, request.prediction_id)
        labels = request.all_labels
        if prediction.classes is None:
            raise InvalidInputError(
                f"Model {self._model!r} gave no classes with this prediction, so there is no truth to it."
            )
        if len(labels) != len(prediction.classes):
            raise InvalidInputError(
                f"The prediction has {len(prediction.classes)} examples, the feedback {len(labels)}."
            )
        known = [row for row, label in enumerate(labels) if label is not None]
        return Judged(
            prediction=prediction,
            rows=np.asarray(known, np.int32),
            labels=np.asarray([labels[row] for row in known], np.int32),
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
