"""Distortions of live pictures: parsed from the command line, and what they do to a picture."""

from __future__ import annotations

import numpy as np
import pytest

from semr.errors import InvalidInputError
from workflow_examples.mnist.distortions import Distortion, jitter


@pytest.fixture
def bar() -> np.ndarray:
    """Three pictures of a vertical bar."""
    picture = np.zeros((28, 28), np.float32)
    picture[6:22, 13:15] = 1
    return np.stack([picture] * 3)


def test_parsing() -> None:
    assert Distortion.parse("rotate=35") == Distortion("rotate", 35.0)
    assert Distortion.parse("invert") == Distortion("invert", 1.0)


@pytest.mark.parametrize(
    "text", ["", "melt=3", "rotate", "rotate=much", "rotate=270", "noise=2", "invert=0.5", "noise=nan"]
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Distortion.parse(text)


def test_a_quarter_turn_lays_the_bar_down(bar: np.ndarray) -> None:
    turned = Distortion("rotate", 90).apply(bar, np.random.default_rng(0))
    assert turned.shape == bar.shape
    assert turned.dtype == np.float32
    assert turned[0].sum(axis=1).argmax() in (13, 14)
    np.testing.assert_allclose(turned[0].sum(), bar[0].sum(), rtol=0.05)


def test_rotation_goes_counter_clockwise(bar: np.ndarray) -> None:
    turned = Distortion("rotate", 30).apply(bar, np.random.default_rng(0))[0]
    columns = np.arange(28)
    top, bottom = (turned[rows] @ columns for rows in (slice(6, 10), slice(18, 22)))
    assert top.sum() / turned[6:10].sum() < 13.5 < bottom.sum() / turned[18:22].sum()


def test_inversion_and_noise_stay_in_range(bar: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(Distortion("invert", 1).apply(bar, rng), 1 - bar)
    noisy = Distortion("noise", 0.3).apply(bar, rng)
    assert 0 <= noisy.min() < noisy.max() <= 1
    assert not np.allclose(noisy[0], noisy[1])


def test_jitter_moves_each_picture_a_little_and_differently(bar: np.ndarray) -> None:
    moved = jitter(bar, np.random.default_rng(0))
    assert not np.array_equal(moved[0], moved[1])
    np.testing.assert_allclose(moved.sum(axis=(1, 2)), bar.sum(axis=(1, 2)), rtol=0.1)
    np.testing.assert_array_equal(moved, jitter(bar, np.random.default_rng(0)))
