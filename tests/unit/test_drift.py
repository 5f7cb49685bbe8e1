"""Drift on real digits: no false alarms on new samples, detection of what the traffic simulator does to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from semr.errors import InvalidInputError
from semr.monitoring.drift import ReferenceWindow, critical_psi, measure_drift, psi
from workflow_examples.mnist.sources.libraries import enlarge

SEEDS = 20
REFERENCE_ROWS = 1258  # 70 %, the training split


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    pixels, _ = load_digits(return_X_y=True)
    return np.stack([enlarge(row) for row in pixels.reshape(-1, 8, 8)]).astype(np.float32)[..., None] / 255


def split(digits: np.ndarray, seed: int) -> tuple[ReferenceWindow, np.ndarray, np.random.Generator]:
    """A reference of one part, and the rest."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(digits))
    reference = ReferenceWindow.from_inputs(digits[order[:REFERENCE_ROWS]], "image_moments")
    return reference, digits[order[REFERENCE_ROWS:]], random


def is_drift(reference: ReferenceWindow, live: np.ndarray) -> bool:
    return any(each.is_drift for each in measure_drift(reference, reference.bin(live)))


@pytest.mark.parametrize("rows", [200, 500, 2000])
def test_no_false_alarm_without_drift(digits: np.ndarray, rows: int) -> None:
    """Unseen digits, drawn again and again as the traffic simulator does: 0 of 20 windows of each size alarm."""
    alarms = 0
    for seed in range(SEEDS):
        reference, rest, random = split(digits, seed)
        alarms += is_drift(reference, rest[random.integers(0, len(rest), rows)])
    assert alarms == 0, f"{alarms} of {SEEDS} windows of {rows} rows without drift raised an alarm"


def rotated(degrees: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def rotate(images: np.ndarray, _: np.random.Generator) -> np.ndarray:
        turned = [
            np.asarray(Image.fromarray(image[..., 0]).rotate(degrees, Image.Resampling.BILINEAR)) for image in images
        ]
        return np.stack(turned)[..., None]

    return rotate


DRIFTS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "rotate 15": rotated(15),
    "rotate 25": rotated(25),
    "rotate 35": rotated(35),
    "rotate -25": rotated(-25),
    "invert": lambda images, _: 1 - images,
    "noise": lambda images, random: np.clip(images + random.normal(0, 0.2, images.shape), 0, 1),
    "shift": lambda images, _: np.roll(images, 2, axis=2),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_drift_is_seen_in_the_smallest_window(digits: np.ndarray, name: str) -> None:
    for seed in range(5):
        reference, rest, random = split(digits, seed)
        live = DRIFTS[name](rest[random.integers(0, len(rest), 200)], random)
        assert is_drift(reference, live), f"{name} not seen with seed {seed}"


def test_rotation_shows_in_the_shape(digits: np.ndarray) -> None:
    reference, rest, random = split(digits, 0)
    scores = measure_drift(reference, reference.bin(DRIFTS["rotate 35"](rest, random)))
    assert max(scores, key=lambda each: each.psi).group == "shape"


def test_psi_under_no_drift_follows_its_chi_square_law() -> None:
    """The mean of chi-square is its degrees of freedom, and `critical_psi` is exceeded as often as it says."""
    random = np.random.default_rng(0)
    live, reference = 500, 1000
    values = [psi(random.multinomial(reference, [0.1] * 10), random.multinomial(live, [0.1] * 10)) for _ in range(4000)]
    assert np.mean(values) == pytest.approx(9 * (1 / live + 1 / reference), rel=0.05)
    exceeded = np.mean(np.asarray(values) > critical_psi(10, live, reference, alpha=0.05))
    assert exceeded == pytest.approx(0.05, abs=0.015)


def test_psi_is_symmetric_and_zero_for_equal_counts() -> None:
    a, b = np.array([10, 20, 70]), np.array([50, 30, 20])
    assert psi(a, b) == pytest.approx(psi(b, a))
    assert psi(a, a) == 0
    assert np.isfinite(psi(np.array([100, 0]), np.array([0, 100])))
    with pytest.raises(InvalidInputError, match="equal bins"):
        psi(a, b[:2])
    assert critical_psi(10, 0, 100) == float("inf")


def test_a_window_survives_json_and_counts_every_row(digits: np.ndarray) -> None:
    reference, rest, _ = split(digits, 0)
    again = ReferenceWindow.from_json(reference.to_json())
    assert again == reference
    for counts in again.bin(rest):
        assert counts.sum() == len(rest)
    for feature in reference.features:
        assert sum(feature.counts) == REFERENCE_ROWS
        assert min(feature.counts) > 0


def test_columns_with_few_values_get_few_bins_and_nan_is_counted() -> None:
    random = np.random.default_rng(0)
    rows = np.stack([random.integers(0, 2, 500), random.normal(size=500), np.ones(500)], axis=1).astype(np.float64)
    reference = ReferenceWindow.from_inputs(rows, "columns")
    assert [len(each.counts) for each in reference.features] == [2, 10, 1]
    assert not is_drift(reference, rows[:300])
    broken = rows.copy()
    broken[:, 1] = np.nan
    assert [counts.sum() for counts in reference.bin(broken)] == [500, 500, 500]
    assert is_drift(reference, broken)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a reference window"),
        ("[]", "not a reference window"),
        ('{"format": 9}', "format 9"),
        ('{"format": 1, "extractor": "columns", "rows": 5, "features": []}', "contradicts itself"),
        (
            '{"format": 1, "extractor": "columns", "rows": 5, "features": '
            '[{"group": "a", "name": "b", "edges": [1, 2], "counts": [5]}]}',
            "contradicts itself",
        ),
    ],
)
def test_what_is_no_window_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        ReferenceWindow.from_json(text)


def test_a_reference_needs_rows_and_finite_features() -> None:
    with pytest.raises(InvalidInputError, match="at least 50 rows"):
        ReferenceWindow.from_inputs(np.zeros((10, 2)), "columns")
    with pytest.raises(InvalidInputError, match="not finite"):
        ReferenceWindow.from_inputs(np.full((100, 2), np.nan), "columns")
