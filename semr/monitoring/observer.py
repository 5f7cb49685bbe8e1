"""The watcher beside a model server: takes what was asked and answered, and does the rest in a thread of its own.

A request pays for one entry in a queue. When the queue is full, or there are more rows than the limit, inputs are skipped
and counted as such.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError, SemrError
from semr.inference.metrics import Sink
from semr.monitoring import prediction_id
from semr.monitoring.baseline import Baseline, load_baseline
from semr.monitoring.buffer import BoundedBuffer
from semr.monitoring.classification import Classification, Said
from semr.monitoring.drift import ReferenceWindow
from semr.monitoring.feedback import FeedbackJudge, FeedbackRequest, FeedbackResponse
from semr.monitoring.metrics import MonitoringMetrics
from semr.monitoring.rate import RowLimit
from semr.monitoring.recorder import RecordedFeedback, RecordedRequest, Recorder
from semr.registry import ModelVersionRef
from semr.settings import Settings
from semr.storage import ObjectStore

logger = logging.getLogger(__name__)

#: Examples are sampled above this; scoring that many images of 28x28 takes a few per cent of a core.
ROWS_PER_SECOND = 2000.0
QUEUE_BYTES = 64_000_000
# Of an observation besides its arrays.
_OVERHEAD_BYTES = 500
_CLOSE_SECONDS = 5.0
_PAUSE_SECONDS = 0.1
# The served one and the one before, of which requests may be under way.
_WATCHED_VERSIONS = 2
# Histograms take values one by one: of what is drained at once so many are enough.
_CONFIDENCES = 256


@dataclass(frozen=True)
class Observation:
    """A request that was answered.

    Attributes:
        version: model version that answered.
        prediction_id: the id that the client got.
        inputs: the model's only input (rows, ...), None when it has several.
        said: what it predicted, None when it gives neither classes nor forecasts.
    """

    version: str
    prediction_id: str
    time: float
    inputs: npt.NDArray[Any] | None
    said: Said | None


class Observer:
    """Watches the model `model`.

    Args:
        model: name of the model.
        sinks: where the numbers go.
        baseline_of: reads what a version is measured against; None: nothing is.
        store: where requests and labels are recorded; None: they are not.
        rows_per_second: examples are sampled above this.
    """

    def __init__(
        self,
        model: str,
        sinks: tuple[Sink, ...],
        *,
        baseline_of: Callable[[ModelVersionRef], Baseline] | None = None,
        store: ObjectStore | None = None,
        rows_per_second: float = ROWS_PER_SECOND,
    ) -> None:
        self.model = model
        self._metrics = MonitoringMetrics(model, sinks)
        self._baseline_of = baseline_of
        self._recorder = Recorder(store, model, self._metrics.recorded, self._metrics.dropped) if store else None
        self._judge = FeedbackJudge(model)
        self._references: dict[str, ReferenceWindow] = {}
        self._watched: list[str] = []
        self._limit = RowLimit(rows_per_second)
        self._random = np.random.default_rng()
        self._queue: BoundedBuffer[Observation] = BoundedBuffer(QUEUE_BYTES)
        self._thread = threading.Thread(target=self._run, name="semr-observer", daemon=True)
        self._thread.start()

    @classmethod
    def from_settings(cls, model: str, sinks: tuple[Sink, ...], settings: Settings) -> Observer:
        """Baselines from MLflow, records into the object store if the contract has one."""
        store = ObjectStore.from_settings(settings) if settings.object_store_endpoint else None
        return cls(model, sinks, baseline_of=lambda ref: load_baseline(ref, settings), store=store)

    def watch(self, ref: ModelVersionRef) -> None:
        """Prepare for a version that is going to be served; without its baseline it is watched less, and the log says so."""
        baseline = Baseline(None, None, None)
        if self._baseline_of is not None:
            try:
                baseline = self._baseline_of(ref)
            except SemrError as error:
                logger.warning("%s is served without a look at its input drift: %s", ref.uri, error)
        self._watched = [*(each for each in self._watched if each != ref.version), ref.version]
        while len(self._watched) > _WATCHED_VERSIONS:
            self._metrics.forget(self._watched.pop(0))
        references = {version: window for version, window in self._references.items() if version in self._watched}
        references.pop(ref.version, None)
        if baseline.reference is not None:
            references[ref.version] = baseline.reference
        self._references = references
        self._metrics.baseline(ref.version, baseline.reference, baseline.trained, baseline.accuracy)

    def observe(self, version: str, token: str, inputs: npt.NDArray[Any] | None, said: Said | None) -> None:
        """Take note of an answered request; never waits, and keeps the arrays, which must not change afterwards."""
        observation = Observation(version, token, time.time(), inputs, said)
        size = _OVERHEAD_BYTES + len(token) + (inputs.nbytes if inputs is not None else 0)
        if not self._queue.offer(observation, size):
            self._metrics.skipped(version, len(inputs) if inputs is not None else 0)

    def feedback(self, request: FeedbackRequest) -> FeedbackResponse:
        """Judge a prediction by its labels.

        Raises:
            InvalidInputError: the labels belong to no prediction of this model.
        """
        try:
            judged = self._judge.judge(request)
        except InvalidInputError:
            self._metrics.unmatched()
            raise
        examples, correct = len(judged.rows), judged.correct
        if judged.is_duplicate:
            examples = correct = 0
        else:
            self._metrics.feedback(judged.prediction.version, examples, correct)
            if judged.errors is not None:
                self._metrics.missed(judged.prediction.version, judged.errors)
            if self._recorder is not None:
                self._recorder.add_feedback(
                    RecordedFeedback(request.prediction_id, time.time(), judged.rows, judged.truth)
                )
        return FeedbackResponse(
            model_name=self.model,
            model_version=judged.prediction.version,
            examples=examples,
            correct=correct,
            duplicate=judged.is_duplicate,
        )

    def close(self) -> None:
        """Finish what is queued and write what is to be recorded; waits 15 s at most."""
        self._queue.close()
        self._thread.join(_CLOSE_SECONDS)
        if self._recorder is not None:
            self._recorder.close()

    def _run(self) -> None:
        while True:
            observations = self._queue.drain()
            if not observations:
                return
            # Many at once cost little more than one, and a thread that wakes for each takes the interpreter from requests.
            self._queue.wait_closed(_PAUSE_SECONDS)
            by_version: dict[str, list[Observation]] = {}
            for observation in observations:
                by_version.setdefault(observation.version, []).append(observation)
            for version, group in by_version.items():
                self._count_predictions(version, group)
                self._score(version, group)
            if self._recorder is not None:
                for observation in observations:
                    _record(self._recorder, observation)

    def _count_predictions(self, version: str, group: list[Observation]) -> None:
        said = [each.said for each in group if isinstance(each.said, Classification)]
        if said:
            self._metrics.predicted(version, np.concatenate([each.classes for each in said]))
        confidences = [each.confidences for each in said if each.confidences is not None]
        if confidences:
            self._metrics.confident(version, self._sample(np.concatenate(confidences), _CONFIDENCES))

    def _score(self, version: str, group: list[Observation]) -> None:
        reference = self._references.get(version)
        arrays = [each.inputs for each in group if each.inputs is not None]
        if reference is None or not arrays:
            return
        rows = sum(map(len, arrays))
        allowed = self._limit.take(rows)
        try:
            if allowed:
                inputs = self._sample(np.concatenate(arrays), allowed)
                self._metrics.binned(version, reference, reference.bin(inputs))
        except (InvalidInputError, ValueError) as error:
            # A reference of another shape than the model's input; or requests of different shapes, where the model allows it.
            logger.warning("inputs of version %s cannot be compared with its reference: %s", version, error)
            allowed = 0
        if allowed < rows:
            self._metrics.skipped(version, rows - allowed)

    def _sample(self, rows: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
        return rows if len(rows) <= most else rows[np.sort(self._random.choice(len(rows), most, replace=False))]


def _record(recorder: Recorder, observation: Observation) -> None:
    if observation.inputs is None:
        return
    recorder.add_request(
        RecordedRequest(
            prediction_id=observation.prediction_id,
            time=observation.time,
            version=observation.version,
            rows=np.arange(len(observation.inputs), dtype=np.int32),
            inputs=observation.inputs,
            classes=observation.said.classes if isinstance(observation.said, Classification) else None,
        )
    )


def new_prediction_id(model: str, version: str, said: Said | None) -> str:
    """The id that goes out with an answer."""
    return prediction_id.make(model, version, said)
