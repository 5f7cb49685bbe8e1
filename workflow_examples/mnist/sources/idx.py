"""MNIST's own format: IDX files of images and labels, plain or compressed with gzip.

Big endian header: 0x00000803, count, rows, columns for images; 0x00000801, count for labels; then one byte a value.
The format is described at http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from semr.errors import InvalidInputError
from workflow_examples.mnist.sources.samples import BLOCK, HEIGHT, WIDTH, Quota, Sample, Source, check_labels, pick

IMAGES_MAGIC = 0x00000803
LABELS_MAGIC = 0x00000801

_NAME = re.compile(r"(?P<set>.*)(?P<what>images|labels)(?P<rest>[-.]idx[13]-ubyte)(\.gz)?")
_NAMES = "train-images-idx3-ubyte and train-labels-idx1-ubyte, with t10k instead of train for the test set, or with .gz"


@dataclass(frozen=True)
class Pair:
    """Images and labels that belong together, with the count that both headers give."""

    images: Path
    labels: Path
    count: int


def is_idx(path: Path) -> bool:
    """Whether the file has a name as MNIST's files have it."""
    return _NAME.fullmatch(path.name) is not None


def has_idx(folder: Path) -> bool:
    """Whether a file of the folder has a name as MNIST's files have it."""
    return any(is_idx(path) for path in folder.iterdir())


def open_idx(folder: Path) -> Source:
    """All sets in the folder, training before test.

    Raises:
        InvalidInputError: a file of a pair is missing, or a header is not as it should be.
    """
    pairs = [_pair(images, labels) for images, labels in _find_pairs(folder)]

    def samples(quota: Quota) -> Iterator[Sample]:
        for pair in pairs:
            yield from _read_pair(pair, quota)

    names = ", ".join(pair.images.name for pair in pairs)
    return Source(f"IDX files ({names})", sum(pair.count for pair in pairs), samples)


def _find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """(images, labels) of each set; of a file that is there both plain and compressed, the plain one is taken."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True):
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            found.setdefault(match["set"], {})[match["what"]] = path
    for files in found.values():
        if len(files) == 1:
            [(what, path)] = files.items()
            other = "labels" if what == "images" else "images"
            raise InvalidInputError(f"{path} has no file of {other} beside it: expected {_NAMES}.")
    ordered = sorted(found.items(), key=lambda item: ("train" not in item[0], item[0]))
    return [(files["images"], files["labels"]) for _, files in ordered]


def _pair(images: Path, labels: Path) -> Pair:
    with _open(images) as file:
        count, rows, columns = _header(file, images, IMAGES_MAGIC, "images", 3)
    with _open(labels) as file:
        [label_count] = _header(file, labels, LABELS_MAGIC, "labels", 1)
    if (rows, columns) != (HEIGHT, WIDTH):
        raise InvalidInputError(f"{images} has images of {rows}x{columns} pixels: expected {HEIGHT}x{WIDTH}.")
    if count != label_count:
        raise InvalidInputError(
            f"{images} has {count} images and {labels.name} has {label_count} labels: expected as many of both."
        )
    return Pair(images, labels, count)


def _read_pair(pair: Pair, quota: Quota) -> Iterator[Sample]:
    with _open(pair.images) as images, _open(pair.labels) as labels:
        _header(images, pair.images, IMAGES_MAGIC, "images", 3)
        _header(labels, pair.labels, LABELS_MAGIC, "labels", 1)
        left = pair.count
        while left and not quota.full:
            rows = min(BLOCK, left)
            pixels = np.frombuffer(_exactly(images, rows * HEIGHT * WIDTH, pair.images), np.uint8)
            classes = check_labels(np.frombuffer(_exactly(labels, rows, pair.labels), np.uint8), pair.labels)
            yield from pick(pixels.reshape(rows, HEIGHT, WIDTH), classes, quota)
            left -= rows
        if not left:
            _end(images, pair.images)
            _end(labels, pair.labels)


def _header(file: BinaryIO, path: Path, magic: int, what: str, dimensions: int) -> tuple[int, ...]:
    """Sizes of the dimensions."""
    found, *sizes = struct.unpack(f">{1 + dimensions}I", _exactly(file, 4 * (1 + dimensions), path))
    if found != magic:
        raise InvalidInputError(f"{path} starts with 0x{found:08x}: expected 0x{magic:08x}, an IDX file of {what}.")
    return tuple(sizes)


def _exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    data = _read(file, size, path)
    if len(data) != size:
        raise InvalidInputError(f"{path} is shorter than its header says: expected a complete IDX file.")
    return data


def _end(file: BinaryIO, path: Path) -> None:
    if _read(file, 1, path):
        raise InvalidInputError(f"{path} is longer than its header says: expected a complete IDX file.")


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(file: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"{path} cannot be read ({error}): expected a complete IDX file.")
