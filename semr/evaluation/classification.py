"""Judging a classifier's predictions on a holdout: numbers, a report for each class, a picture of the confusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOLDOUT_ACCURACY = "holdout_accuracy"


@dataclass(frozen=True)
class ClassifierReport:
    """What a classifier does on a holdout.

    Attributes:
        metrics: `holdout_accuracy`, `holdout_log_loss` (nats), `holdout_macro_f1`, `holdout_rows`.
        by_class: for each class precision, recall, f1-score and support, as scikit-learn's `classification_report`.
        confusions: counts (classes, classes) int64; row the true class, column the predicted one.
    """

    metrics: dict[str, float]
    by_class: dict[str, dict[str, float]]
    confusions: npt.NDArray[np.int64]

    def figure(self, title: str) -> Figure:
        """The confusion matrix as a picture with its counts; errors stand out, the diagonal does not drown them."""
        from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second, and only the picture needs it

        size = len(self.confusions)
        errors = self.confusions.copy()
        np.fill_diagonal(errors, 0)
        figure = Figure(figsize=(1.6 + 0.55 * size, 1.5 + 0.55 * size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(errors, cmap="Reds", vmin=0, vmax=max(1, int(errors.max())) * 1.6)
        for true in range(size):
            for predicted in range(size):
                count = int(self.confusions[true, predicted])
                if true == predicted:
                    axes.add_patch(_cell(true))
                axes.text(predicted, true, str(count) if count else "·", ha="center", va="center", fontsize=10)
        axes.set_xticks(range(size))
        axes.set_yticks(range(size))
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.set_title(f"{title}\naccuracy {self.metrics[HOLDOUT_ACCURACY]:.4f}", fontsize=11)
        return figure


def judge_classifier(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]
) -> ClassifierReport:
    """Compare predicted probabilities (rows, classes) with true labels (rows,).

    Raises:
        InvalidInputError: shapes do not fit, there are no rows, or a label is not a class.
    """
    # Takes seconds to import; a model server imports this module for its names, and has no scikit-learn.
    from sklearn.metrics import classification_report, confusion_matrix, log_loss  # noqa: PLC0415

    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise InvalidInputError(
            f"Predictions of shape {probabilities.shape} cannot be judged by labels of shape {labels.shape}: "
            "give (rows, classes) and (rows,), at least one row."
        )
    classes = np.arange(probabilities.shape[1])
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InvalidInputError(
            f"Labels go from {labels.min()} to {labels.max()}, but there are {len(classes)} classes."
        )
    predicted = probabilities.argmax(axis=1)
    report = classification_report(labels, predicted, labels=classes, output_dict=True, zero_division=0)
    return ClassifierReport(
        metrics={
            HOLDOUT_ACCURACY: float((predicted == labels).mean()),
            "holdout_log_loss": float(log_loss(labels, probabilities, labels=classes)),
            "holdout_macro_f1": float(report["macro avg"]["f1-score"]),
            "holdout_rows": float(len(labels)),
        },
        by_class={str(each): dict(report[str(each)]) for each in classes},
        confusions=confusion_matrix(labels, predicted, labels=classes),
    )


def _cell(index: int) -> Any:  # noqa: ANN401 - Matplotlib's patch
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    return Rectangle((index - 0.5, index - 0.5), 1, 1, facecolor="#e8f1e8", edgecolor="none", zorder=0.5)
