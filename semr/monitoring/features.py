"""Few numbers that describe an example: what input drift is measured on.

An extractor is known by its name, which stands in the reference window of a model, so that server and training job compute
the same. Features of a kind share a group, under which their drift is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError

Array = npt.NDArray[Any]
Values = npt.NDArray[np.float64]

#: Each feature costs 20 series of Prometheus for each model version and replica.
MOST_FEATURES = 64


@dataclass(frozen=True)
class Feature:
    """Name of a feature, and the group that it belongs to."""

    group: str
    name: str


@dataclass(frozen=True)
class FeatureTable:
    """`values` of shape (rows, features), one column for each of `features`."""

    features: tuple[Feature, ...]
    values: Values


Extractor = Callable[[Array], FeatureTable]

_IMAGE_FEATURES = (
    Feature("intensity", "mean"),
    Feature("intensity", "std"),
    Feature("position", "x"),
    Feature("position", "y"),
    Feature("shape", "xx"),
    Feature("shape", "yy"),
    Feature("shape", "xy"),
)


def image_moments(images: Array) -> FeatureTable:
    """Brightness and the first image moments (M.-K. Hu, "Visual Pattern Recognition by Moment Invariants", 1962).

    Group `intensity`: mean and standard deviation of the pixels, which noise and inversion move. Group `position`: centre of
    mass of the ink. Group `shape`: its central second moments; rotation moves `xy`. Lengths are in units of the image's
    width and height. Ink is what a pixel has above the darkest one of its image; an image without any is in the middle.

    Args:
        images: (rows, height, width) or (rows, height, width, channels); channels are averaged.

    Raises:
        InvalidInputError: another number of axes, or no pixels.
    """
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise InvalidInputError(
            f"image_moments takes (rows, height, width) or (rows, height, width, channels), not {images.shape}."
        )
    grey = images.mean(axis=3, dtype=np.float64) if images.ndim == 4 else images.astype(np.float64)
    rows, height, width = grey.shape
    pixels = grey.reshape(rows, height * width)
    ink = pixels - pixels.min(axis=1, keepdims=True)
    sums = ink @ _monomials(height, width)
    mass = sums[:, 0]
    has_ink = mass > 0
    safe = np.where(has_ink, mass, 1.0)
    x, y, xx, yy, xy = (np.where(has_ink, sums[:, column] / safe, 0.0) for column in range(1, 6))
    columns = (pixels.mean(axis=1), pixels.std(axis=1), x + 0.5, y + 0.5, xx - x * x, yy - y * y, xy - x * y)
    return FeatureTable(_IMAGE_FEATURES, np.stack(columns, axis=1))


def columns(rows: Array) -> FeatureTable:
    """Every column of (rows, columns) is a feature and a group of its own: tables of numbers.

    Raises:
        InvalidInputError: not two axes, or more than `MOST_FEATURES` columns.
    """
    if rows.ndim != 2 or not 1 <= rows.shape[1] <= MOST_FEATURES:
        raise InvalidInputError(f"columns takes (rows, 1 to {MOST_FEATURES} columns), not {rows.shape}.")
    features = tuple(Feature(f"column_{index}", "value") for index in range(rows.shape[1]))
    return FeatureTable(features, rows.astype(np.float64))


def windows(rows: Array) -> FeatureTable:
    """Level, variation and trend of each column of windows of a time series (rows, steps, columns).

    A group for each column, `column_<index>`: mean, standard deviation, and last minus first step.

    Raises:
        InvalidInputError: not three axes, no steps, or more columns than give `MOST_FEATURES` features.
    """
    if rows.ndim != 3 or rows.shape[1] < 1 or not 1 <= rows.shape[2] <= MOST_FEATURES // 3:
        raise InvalidInputError(f"windows takes (rows, steps, 1 to {MOST_FEATURES // 3} columns), not {rows.shape}.")
    series = rows.astype(np.float64)
    found = (series.mean(axis=1), series.std(axis=1), series[:, -1] - series[:, 0])
    features = tuple(
        Feature(f"column_{index}", name) for name in ("mean", "std", "trend") for index in range(rows.shape[2])
    )
    return FeatureTable(features, np.concatenate(found, axis=1))


EXTRACTORS: dict[str, Extractor] = {"image_moments": image_moments, "columns": columns, "windows": windows}


def extract(extractor: str, inputs: Array) -> FeatureTable:
    """Features of `inputs` (rows, ...) by the extractor of that name.

    Raises:
        InvalidInputError: there is no such extractor, or the inputs do not have its shape.
    """
    found = EXTRACTORS.get(extractor)
    if found is None:
        raise InvalidInputError(f"There is no feature extractor {extractor!r}; known are {', '.join(EXTRACTORS)}.")
    return found(inputs)


@lru_cache(maxsize=8)
def _monomials(height: int, width: int) -> Values:
    """1, x, y, x², y², xy at each pixel's centre, from the middle of the image: (height * width, 6)."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height - 0.5, (np.arange(width) + 0.5) / width - 0.5, indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1).reshape(height * width, 6)
