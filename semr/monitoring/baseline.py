"""What a model version is measured against: its reference window, its accuracy on the holdout, the time of its training."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.artifacts import load_text
from mlflow.exceptions import MlflowException

from semr import tracking
from semr.errors import InvalidInputError, SemrError
from semr.evaluation import HOLDOUT_ACCURACY
from semr.monitoring.drift import ARTIFACT_FILE, ReferenceWindow
from semr.registry import ModelVersionRef
from semr.settings import Settings


class BaselineError(SemrError):
    """What a version is to be measured against cannot be read."""


@dataclass(frozen=True)
class Baseline:
    """None where the training did not leave it.

    Attributes:
        reference: distribution of the inputs.
        trained: end of the training run in seconds since 1970.
        accuracy: accuracy on the holdout, 0 to 1.
    """

    reference: ReferenceWindow | None
    trained: float | None
    accuracy: float | None


def load_baseline(ref: ModelVersionRef, settings: Settings) -> Baseline:
    """Read the baseline of a version from its training run.

    Raises:
        BaselineError: the run is gone, or its reference window cannot be used.
        DependencyUnavailableError: MLflow does not answer.
    """
    with tracking.named_errors(settings):
        client = tracking.connect(settings)
        try:
            info = client.get_run(ref.run_id).info
            folder = ARTIFACT_FILE.rpartition("/")[0]
            is_there = any(each.path == ARTIFACT_FILE for each in client.list_artifacts(ref.run_id, folder))
            text = load_text(f"runs:/{ref.run_id}/{ARTIFACT_FILE}") if is_there else None
        except MlflowException as error:
            if error.get_http_status_code() >= 500:
                raise
            raise BaselineError(f"The training run of {ref.uri} cannot be read: {error}") from error
    trained = info.end_time or info.start_time
    try:
        reference = ReferenceWindow.from_json(text) if text is not None else None
    except InvalidInputError as error:
        raise BaselineError(f"The reference window of {ref.uri} cannot be used: {error}") from error
    return Baseline(reference, trained / 1000 if trained else None, ref.metrics.get(HOLDOUT_ACCURACY))
