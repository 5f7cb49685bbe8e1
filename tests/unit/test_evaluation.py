"""Numbers and picture of a classifier's evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semr.errors import InvalidInputError
from semr.evaluation import judge_classifier


def test_numbers_of_a_small_case_by_hand(tmp_path: Path) -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    report = judge_classifier(probabilities, np.array([0, 1, 1, 1]))
    assert report.metrics["holdout_accuracy"] == 0.75
    assert report.metrics["holdout_rows"] == 4
    expected_loss = -np.mean(np.log([0.9, 0.7, 0.3, 0.8]))
    assert report.metrics["holdout_log_loss"] == pytest.approx(expected_loss)
    assert report.confusions.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert report.by_class["1"]["recall"] == pytest.approx(2 / 3)
    assert report.by_class["2"]["support"] == 0
    report.figure("three classes").savefig(tmp_path / "confusions.png")
    assert (tmp_path / "confusions.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [
        (np.ones((2, 3)), np.array([0]), "cannot be judged"),
        (np.ones((0, 3)), np.array([], dtype=int), "at least one row"),
        (np.ones((1, 3)) / 3, np.array([3]), "3 classes"),
    ],
)
def test_what_cannot_be_judged_is_refused(probabilities: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        judge_classifier(probabilities, labels)
