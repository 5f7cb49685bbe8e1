"""Bring handwritten digits into the object store: `python -m workflow_examples.mnist.data --source digits`.

The result is a version of the dataset `mnist-raw` with one split `all`; whoever trains makes splits of it. Columns:

- `image`: fixed_size_list<uint8>[784], row-major 28x28, ink in high values on a background of 0, as in MNIST;
- `label`: int8, 0 to 9.

The same source gives the same version again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from semr.errors import SemrError
from semr.storage import DatasetVersion, ObjectStore
from workflow_examples.mnist.sources import HEIGHT, WIDTH, Quota, Sample, open_source

DATASET = "mnist-raw"
SPLIT = "all"
PIXELS = HEIGHT * WIDTH
SCHEMA = pa.schema(
    [("image", pa.list_(pa.uint8(), PIXELS)), ("label", pa.int8())],
    metadata={"height": str(HEIGHT), "width": str(WIDTH)},
)
BATCH_ROWS = 1024


def ingest(
    source: str, limit: int | None = None, store: ObjectStore | None = None, progress: bool | None = None
) -> DatasetVersion:
    """Read `source` as a stream and commit it as a version of the dataset `mnist-raw`.

    Args:
        source: `digits`, `mnist`, or a path, see `workflow_examples.mnist.sources`.
        limit: use at most this many images, the same share of each class.
        store: where to write (default: the object store of the settings).
        progress: show a progress bar on standard error (default: when that is a terminal).

    Raises:
        InvalidInputError: the source or the limit cannot be used; nothing becomes visible then.
        DependencyUnavailableError: the object store or the download does not answer.
    """
    store = store or ObjectStore.from_settings()
    quota = Quota(limit)
    opened = open_source(source)
    total = opened.total if limit is None or opened.total is None else min(limit, opened.total)
    description = opened.description if limit is None else f"{opened.description}, at most {limit} images"
    with _progress_bar(progress) as bar:
        task = bar.add_task("Reading images", total=total)

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in _batches(opened.samples(quota)):
                yield batch
                bar.advance(task, batch.num_rows)

        return store.write_dataset(DATASET, {SPLIT: batches()}, source=description)


def rows_per_class(version: DatasetVersion, store: ObjectStore) -> dict[int, int]:
    """Rows of each class as they are in the object store, in the order of the classes."""
    labels = store.read(version, SPLIT, columns=["label"])["label"].to_numpy()
    classes, counts = np.unique(labels, return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def main(argv: Sequence[str]) -> int:
    """The command; `argv` without the program's name. Returns the exit code, errors go to standard error."""
    arguments = _parser().parse_args(argv)
    try:
        store = ObjectStore.from_settings()
        store.check()
        known = {version.version for version in store.versions(DATASET)}
        version = ingest(arguments.source, arguments.limit, store)
        counts = rows_per_class(version, store)
    except SemrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    state = "was there already, nothing new was stored" if version.version in known else "stored"
    print(f"dataset   {version.name}")
    print(f"version   {version.version} ({state})")
    print(f"rows      {version.rows} ({', '.join(f'{label}: {count}' for label, count in counts.items())})")
    print(f"source    {version.source}")
    print(f"location  {version.uri}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workflow_examples.mnist.data",
        description="Bring handwritten digits into the object store, as a version of the dataset mnist-raw.",
        epilog="The same source always gives the same version. A file that cannot be used is an error with exit code 2.",
    )
    parser.add_argument(
        "--source",
        default="digits",
        metavar="NAME|PATH",
        help="digits: 1,797 handwritten digits that come with scikit-learn, needs no network (default). "
        "mnist: MNIST's 70,000, downloaded by Keras. A path: MNIST's IDX files (the folder or one of them, plain or .gz), "
        "an .npz file as Keras keeps it, or a folder or tar archive of PNG or JPEG images in folders 0 to 9 (also below "
        "training and testing). Images of other sizes and colours become 28x28 grey; an image with a bright frame is "
        "inverted, since ink is bright in MNIST.",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use at most N images, the same share of each class (default: all)"
    )
    return parser


def _batches(samples: Iterator[Sample]) -> Iterator[pa.RecordBatch]:
    images: list[np.ndarray] = []
    labels: list[int] = []
    for image, label in samples:
        images.append(image)
        labels.append(label)
        if len(images) == BATCH_ROWS:
            yield _batch(images, labels)
            images, labels = [], []
    if images:
        yield _batch(images, labels)


def _batch(images: list[np.ndarray], labels: list[int]) -> pa.RecordBatch:
    pixels = pa.array(np.stack(images).reshape(-1))
    return pa.RecordBatch.from_arrays(
        [pa.FixedSizeListArray.from_arrays(pixels, type=SCHEMA.field("image").type), pa.array(labels, pa.int8())],
        schema=SCHEMA,
    )


def _progress_bar(wanted: bool | None) -> Progress:
    console = Console(stderr=True)
    shown = console.is_terminal if wanted is None else wanted
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not shown, transient=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
