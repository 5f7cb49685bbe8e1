"""Where handwritten digits come from: two well-known collections by name, and files of four layouts by path."""

from __future__ import annotations

from pathlib import Path

from semr.errors import InvalidInputError
from workflow_examples.mnist.sources import idx, images, libraries, npz
from workflow_examples.mnist.sources.samples import HEIGHT, WIDTH, Quota, Sample, Source

__all__ = ["COLLECTIONS", "HEIGHT", "WIDTH", "Quota", "Sample", "Source", "open_source"]

COLLECTIONS = {"digits": libraries.open_digits, "mnist": libraries.open_mnist}

_EXPECTED = (
    "expected `digits`, `mnist`, MNIST's IDX files (as train-images-idx3-ubyte.gz), an .npz file as Keras keeps it, "
    "or a folder or tar archive of PNG or JPEG images in folders 0 to 9"
)


def open_source(source: str) -> Source:
    """Find out what `source` is and check as much of it as can be seen without reading everything.

    Args:
        source: name of a collection (`COLLECTIONS`), or the path of a file or folder.

    Raises:
        InvalidInputError: there is nothing of that name, or it has none of the known layouts.
        DependencyUnavailableError: the collection has to be downloaded and the network does not allow it.
    """
    if source in COLLECTIONS:
        return COLLECTIONS[source]()
    path = Path(source)
    if path.is_dir():
        return idx.open_idx(path) if idx.has_idx(path) else images.open_folder(path)
    if not path.is_file():
        raise InvalidInputError(f"There is no file or folder {source!r}: {_EXPECTED}.")
    if idx.is_idx(path):
        return idx.open_idx(path.absolute().parent)
    if path.suffix == ".npz":
        return npz.open_npz(path)
    if images.is_archive(path):
        return images.open_archive(path)
    raise InvalidInputError(f"{source} has none of the known names: {_EXPECTED}.")
