"""What every source gives: 28x28 images with their class, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from semr.errors import InvalidInputError

HEIGHT = 28
WIDTH = 28
CLASSES = 10
# Samples that a source of plain arrays reads at once: 0.8 MB of images.
BLOCK = 1024

Image: TypeAlias = NDArray[np.uint8]
Sample: TypeAlias = tuple[Image, int]


class Quota:
    """How many samples are still wanted: all, or `limit` of them, the same share of each class.

    Sources are often sorted by class, so the first `limit` samples would be of one class. What does not divide evenly goes
    to the lowest classes; a class that has less than its share is not made up for by others.

    Raises:
        InvalidInputError: `limit` is less than 1.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise InvalidInputError(f"The limit is {limit}: it has to be at least 1.")
        self._limit = limit
        self._taken = [0] * CLASSES

    @property
    def full(self) -> bool:
        """Whether no further sample is wanted, of whatever class."""
        return self._limit is not None and sum(self._taken) >= self._limit

    def take(self, label: int) -> bool:
        """Whether to use this sample of class `label`; if so, it is counted."""
        if self._limit is not None:
            share = self._limit // CLASSES + (label < self._limit % CLASSES)
            if self._taken[label] >= share:
                return False
        self._taken[label] += 1
        return True


@dataclass(frozen=True)
class Source:
    """An opened source.

    Args:
        description: what it is, for a person.
        total: number of samples, None when only reading tells.
        samples: read what the quota takes, in an order that is always the same; images are row-major uint8 of shape
            (28, 28) with ink in high values on a background of 0, classes 0 to 9. Raises `InvalidInputError` for content
            that cannot be used.
    """

    description: str
    total: int | None
    samples: Callable[[Quota], Iterator[Sample]]


def pick(images: Image, labels: NDArray[np.uint8], quota: Quota) -> Iterator[Sample]:
    """The samples of a block that the quota takes; `images` of shape (n, 28, 28), `labels` of shape (n,)."""
    for image, label in zip(images, labels.tolist(), strict=True):
        if quota.take(label):
            yield image, label


def check_labels(labels: NDArray[np.integer], path: Path | str) -> NDArray[np.uint8]:
    """The labels as uint8.

    Raises:
        InvalidInputError: one is not in 0 to 9; the message names the first such.
    """
    wrong = labels[(labels < 0) | (labels >= CLASSES)]
    if len(wrong):
        raise InvalidInputError(f"{path} has the label {wrong[0]}: expected labels from 0 to {CLASSES - 1}.")
    return labels.astype(np.uint8)
