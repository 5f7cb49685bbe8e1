"""Whether the disk of a stack has room for more data."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

# SeaweedFS writes no more to a disk of which less is free (its option minFreeSpacePercent, which `weed mini` does not offer).
_LEAST_SHARE = 0.01
# On a small disk that is nothing: MLflow's and the evolution service's databases, Prometheus and logs need room, too.
_LEAST_BYTES = 100 * 10**6


@dataclass(frozen=True)
class Shortage:
    """A disk that is too full: the bytes that are free, and those that must be for the object store to take data."""

    free: int
    needed: int

    def __str__(self) -> str:
        """One phrase for a person."""
        free, needed = _readable(self.free), _readable(self.needed)
        return f"disk full: {free} free, new data need {needed}; what is stored stays readable"


def disk_shortage(folder: Path) -> Shortage | None:
    """What the disk of `folder` lacks; None when there is room.

    Raises:
        OSError: the folder does not exist.
    """
    usage = shutil.disk_usage(folder)
    needed = max(round(_LEAST_SHARE * usage.total), _LEAST_BYTES)
    return Shortage(usage.free, needed) if usage.free < needed else None


def _readable(size: float) -> str:
    return f"{size / 10**9:.1f} GB" if size >= 10**9 else f"{size / 10**6:.0f} MB"
