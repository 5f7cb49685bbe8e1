"""MNIST as Keras keeps it: `mnist.npz`, a zip archive of the NumPy arrays x_train, y_train, x_test and y_test."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from semr.errors import InvalidInputError
from workflow_examples.mnist.sources.samples import BLOCK, HEIGHT, WIDTH, Quota, Sample, Source, check_labels, pick

_SETS = (("x_train", "y_train"), ("x_test", "y_test"))
_ARRAYS = "x_train, y_train, x_test and y_test"


@dataclass(frozen=True)
class Header:
    """What an array's header says."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def open_npz(path: Path) -> Source:
    """Training set, then test set.

    Raises:
        InvalidInputError: not a zip archive, an array is missing, or has another shape or type than expected.
    """
    with _open(path) as archive:
        names = set(archive.namelist())
        missing = [name for pair in _SETS for name in pair if f"{name}.npy" not in names]
        if missing:
            raise InvalidInputError(f"{path} has no array {', '.join(missing)}: expected {_ARRAYS}.")
        total = sum(_check_set(archive, path, *pair) for pair in _SETS)

    def samples(quota: Quota) -> Iterator[Sample]:
        with _open(path) as archive:
            for pair in _SETS:
                yield from _read_set(archive, path, *pair, quota)

    return Source(f"NumPy archive ({path.name})", total, samples)


def _check_set(archive: zipfile.ZipFile, path: Path, images: str, labels: str) -> int:
    """Number of samples of the set."""
    with archive.open(f"{images}.npy") as file:
        image_header = _header(file, path, images)
    with archive.open(f"{labels}.npy") as file:
        label_header = _header(file, path, labels)
    if image_header.dtype != np.uint8 or image_header.shape[1:] != (HEIGHT, WIDTH):
        raise InvalidInputError(
            f"{images} of {path} is {image_header.dtype} of shape {image_header.shape}: "
            f"expected uint8 of shape (n, {HEIGHT}, {WIDTH})."
        )
    if label_header.dtype.kind not in "iu" or len(label_header.shape) != 1:
        raise InvalidInputError(
            f"{labels} of {path} is {label_header.dtype} of shape {label_header.shape}: expected integers of shape (n,)."
        )
    if label_header.shape[0] != image_header.shape[0]:
        raise InvalidInputError(
            f"{path} has {image_header.shape[0]} images in {images} and {label_header.shape[0]} labels in {labels}: "
            "expected as many of both."
        )
    return image_header.shape[0]


def _read_set(archive: zipfile.ZipFile, path: Path, images: str, labels: str, quota: Quota) -> Iterator[Sample]:
    with archive.open(f"{labels}.npy") as file:
        header = _header(file, path, labels)
        values = np.frombuffer(_exactly(file, prod(header.shape) * header.dtype.itemsize, path, labels), header.dtype)
        classes = check_labels(_integers(values), f"{labels} of {path}")
    with archive.open(f"{images}.npy") as file:
        _header(file, path, images)
        for start in range(0, len(classes), BLOCK):
            if quota.full:
                return
            block = classes[start : start + BLOCK]
            pixels = np.frombuffer(_exactly(file, len(block) * HEIGHT * WIDTH, path, images), np.uint8)
            yield from pick(pixels.reshape(len(block), HEIGHT, WIDTH), block, quota)


def _integers(values: NDArray[np.generic]) -> NDArray[np.integer]:
    return values.astype(np.int64)


def _header(file: IO[bytes], path: Path, name: str) -> Header:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except ValueError as error:
        raise InvalidInputError(f"{name} of {path} is not a NumPy array ({error}): expected {_ARRAYS}.") from error
    if fortran_order and len(shape) > 1:
        raise InvalidInputError(f"{name} of {path} is stored column by column: expected row-major images.")
    return Header(shape, dtype)


def _exactly(file: IO[bytes], size: int, path: Path, name: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise InvalidInputError(f"{name} of {path} is shorter than its header says: expected a complete array.")
    return data


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    # RuntimeError: encrypted members; NotImplementedError: compression methods that Python does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise InvalidInputError(f"{path} cannot be read ({error}): expected an .npz file with {_ARRAYS}.") from error
