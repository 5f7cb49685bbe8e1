"""How often an hour of undrifted traffic raises the drift alert: 20 hours, each a draw of its own.

`measure_drift` and the recording rules give the same numbers (test_rules holds them equal); the alert waits for a minute.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits

from semr.monitoring.drift import ReferenceWindow, measure_drift
from workflow_examples.mnist.distortions import Distortion, jitter
from workflow_examples.mnist.prepare import assign_splits
from workflow_examples.mnist.sources.libraries import enlarge

SEEDS = 20
ROWS_PER_MINUTE = 30
WINDOW_MINUTES = 10

Pictures = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def digits() -> npt.NDArray[np.uint8]:
    return np.stack([enlarge(each) for each in load_digits().images])


def alarms(digits: npt.NDArray[np.uint8], seed: int, distortion: Distortion | None = None, minutes: int = 60) -> int:
    """How often the alert begins to fire in that time, with traffic from pictures that the model was not trained on."""
    rng = np.random.default_rng(seed)
    splits = assign_splits(digits, {"train": 0.7, "live": 0.3})
    pictures = (digits.reshape(len(digits), 28, 28) / 255).astype(np.float32)
    reference = ReferenceWindow.from_inputs(pictures[splits == "train"][..., None], "image_moments")
    rows = rng.choice(np.flatnonzero(splits == "live"), minutes * ROWS_PER_MINUTE)
    live: Pictures = jitter(pictures[rows], rng)
    if distortion:
        live = distortion.apply(live, rng)
    by_minute = [reference.bin(part[..., None]) for part in np.array_split(live, minutes)]
    drifted = []
    for end in range(1, minutes + 1):
        window = by_minute[max(0, end - WINDOW_MINUTES) : end]
        counts = tuple(np.sum(feature, axis=0) for feature in zip(*window, strict=True))
        drifted.append(any(each.is_drift for each in measure_drift(reference, counts)))
    fires = [before and now for before, now in pairwise(drifted)]
    return sum(now and not before for before, now in pairwise([False, *fires]))


def test_twenty_hours_without_drift_raise_no_alarm(digits: npt.NDArray[np.uint8]) -> None:
    false_alarms = [alarms(digits, seed) for seed in range(SEEDS)]
    print(f"false alarms in {SEEDS} hours: {sum(false_alarms)}")
    assert sum(false_alarms) == 0


@pytest.mark.parametrize("drift", ["rotate=35", "invert", "noise=0.3"])
def test_the_same_measure_sees_drift_every_time(digits: npt.NDArray[np.uint8], drift: str) -> None:
    assert all(alarms(digits, seed, Distortion.parse(drift), minutes=15) == 1 for seed in range(5))
