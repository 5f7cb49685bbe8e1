"""Feature extractors: what moves which feature, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from semr.errors import InvalidInputError
from semr.monitoring.features import MOST_FEATURES, extract


def features(images: np.ndarray) -> dict[str, float]:
    table = extract("image_moments", images)
    return {
        f"{each.group}.{each.name}": float(value) for each, value in zip(table.features, table.values[0], strict=True)
    }


def stroke() -> np.ndarray:
    image = np.zeros((1, 28, 28), np.float32)
    image[:, 4:24, 13:15] = 1
    return image


def test_moments_of_a_stroke() -> None:
    found = features(stroke())
    assert found["intensity.mean"] == pytest.approx(40 / 784)
    assert found["position.x"] == pytest.approx(0.5)
    assert found["position.y"] == pytest.approx(0.5)
    # A uniform bar of length L has the variance (L² - 1) / 12, here in pixels of 1/28.
    assert found["shape.yy"] == pytest.approx((400 - 1) / 12 / 784)
    assert found["shape.xx"] == pytest.approx((4 - 1) / 12 / 784)
    assert found["shape.xy"] == pytest.approx(0, abs=1e-12)


def test_each_change_moves_its_own_group() -> None:
    plain = features(stroke())
    moved = features(np.roll(stroke(), 3, axis=2))
    assert moved["position.x"] - plain["position.x"] == pytest.approx(3 / 28)
    assert moved["shape.yy"] == pytest.approx(plain["shape.yy"])
    sheared = features(np.stack([np.roll(row, index // 4, axis=0) for index, row in enumerate(stroke()[0])])[None])
    assert sheared["shape.xy"] > 0.005
    assert features(1 - stroke())["intensity.mean"] > 0.9


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (2, 28, 28, 3), (2, 5, 9)])
def test_shapes(shape: tuple[int, ...]) -> None:
    assert extract("image_moments", np.random.default_rng(0).random(shape)).values.shape == (2, 7)


def test_an_image_without_ink_is_in_the_middle() -> None:
    found = features(np.full((1, 8, 8), 0.5))
    assert (found["position.x"], found["shape.xx"]) == (0.5, 0.0)
    assert all(np.isfinite(list(found.values())))


def test_columns_are_features() -> None:
    table = extract("columns", np.arange(6).reshape(2, 3))
    assert [each.group for each in table.features] == ["column_0", "column_1", "column_2"]
    assert table.values.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("extractor", "shape", "words"),
    [
        ("nope", (2, 2), "no feature extractor 'nope'"),
        ("columns", (2, 2, 2), "columns takes"),
        ("columns", (2, MOST_FEATURES + 1), "columns takes"),
        ("image_moments", (2, 784), "image_moments takes"),
    ],
)
def test_refusals(extractor: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        extract(extractor, np.zeros(shape))
