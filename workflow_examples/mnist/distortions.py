"""Ways in which live pictures come to differ from those that a model was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from semr.errors import InvalidInputError

Pictures = npt.NDArray[np.float32]

# Live traffic never repeats a picture exactly. So little that no feature of the drift watch moves: of a window of 750 pictures
# the largest population stability index is 0.05, where 0.25 raises the alert; at 3 degrees and 0.7 pixels it was 0.5.
_JITTER_DEGREES = 2.0
_JITTER_PIXELS = 0.2
# Of the splines that turn and move: straight lines (1) blur, and a blurred picture has less contrast.
_SPLINE_ORDER = 3


@dataclass(frozen=True)
class Distortion:
    """A kind of drift and its strength, as `--drift kind=strength` names it.

    | kind | strength |
    |---|---|
    | rotate | degrees, counter-clockwise |
    | invert | 1: ink and ground change places |
    | noise | standard deviation of Gaussian noise, 0..1 |
    | classes | share of the pictures that are of the classes 0 to 4 |
    """

    kind: str
    strength: float

    @classmethod
    def parse(cls, text: str) -> Distortion:
        """From `kind=strength`.

        Raises:
            InvalidInputError: unknown kind, or a strength that is no number in its range.
        """
        kind, _, strength = text.partition("=")
        limits = {"rotate": (-180.0, 180.0), "invert": (1.0, 1.0), "noise": (0.0, 1.0), "classes": (0.0, 1.0)}
        if kind not in limits:
            raise InvalidInputError(f"There is no drift {kind!r}; known are {', '.join(limits)}.")
        try:
            value = float(strength or ("1" if kind == "invert" else ""))
        except ValueError:
            raise InvalidInputError(f"Drift {kind!r} needs a number, as in {kind}=0.5, not {strength!r}.") from None
        low, high = limits[kind]
        if not low <= value <= high:
            raise InvalidInputError(f"Drift {kind!r} takes {low:g} to {high:g}, not {value:g}.")
        return cls(kind, value)

    def apply(self, pictures: Pictures, rng: np.random.Generator) -> Pictures:
        """Distorted copies of pictures (rows, 28, 28) float32 in 0..1; `classes` leaves pictures as they are."""
        change: Callable[[Pictures], Pictures] = {
            "rotate": lambda each: ndimage.rotate(each, self.strength, axes=(2, 1), reshape=False, order=1),
            "invert": lambda each: 1 - each,
            "noise": lambda each: each + rng.normal(0, self.strength, each.shape).astype(np.float32),
            "classes": lambda each: each,
        }[self.kind]
        changed: Pictures = np.clip(change(pictures), 0, 1).astype(np.float32)
        return changed


def jitter(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """The pictures (rows, 28, 28) as another hand would have placed them: slightly turned and moved, each differently."""
    moved = [
        ndimage.shift(
            ndimage.rotate(picture, rng.normal(0, _JITTER_DEGREES), reshape=False, order=_SPLINE_ORDER),
            rng.normal(0, _JITTER_PIXELS, 2),
            order=_SPLINE_ORDER,
        )
        for picture in pictures
    ]
    placed: Pictures = np.clip(np.stack(moved), 0, 1).astype(np.float32)
    return placed
