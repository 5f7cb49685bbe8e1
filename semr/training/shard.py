"""A worker's share of a split, batch by batch: from memory when it is small, else streamed anew for each epoch.

Every pass over a Ray dataset starts an execution of its own, a second or more; on a few thousand pictures that is most of the
training time. The share of a small split is therefore read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ray.data import DataIterator

Batch = Mapping[str, npt.NDArray[Any]]
Example = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]

# What a worker may keep of a split, in bytes of examples.
MEMORY_LIMIT = 256 * 2**20
# Rows that are shuffled among each other when a split is streamed.
_SHUFFLE_WINDOW = 10_000
_READ_BATCH = 1024


class Shard:
    """One worker's share of one split; a share that fits is read at construction.

    Args:
        source: the worker's share as Ray Train hands it out.
        to_example: turns a batch of columns into inputs (float32, first axis the batch) and targets.
        rows: of the share, about.
        memory_limit: bytes of examples up to which the share is kept in memory.

    Attributes:
        rows: of the share; about, when it is streamed.
        first: the first two examples.
        arrays: all of them when they fit, else None: then they are streamed.
    """

    def __init__(
        self, source: DataIterator, to_example: Callable[[Batch], Example], rows: int, memory_limit: int = MEMORY_LIMIT
    ) -> None:
        self._source = source
        self._to_example = to_example
        self.rows = rows
        self.arrays: Example | None = None
        batches = map(to_example, source.iter_batches(batch_size=_READ_BATCH))
        begin = next(batches)
        self.first: Example = (begin[0][:2], begin[1][:2])
        if rows * sum(array.nbytes / len(array) for array in begin) <= memory_limit:
            inputs, targets = zip(begin, *batches, strict=True)
            self.arrays = np.concatenate(inputs), np.concatenate(targets)
            self.rows = len(self.arrays[0])

    def stream(self, batch_size: int, shuffle_seed: int | None = None) -> Iterator[Example]:
        """One pass over the share, read anew; shuffled within a window when a seed is given."""
        shuffling: dict[str, Any] = {}
        if shuffle_seed is not None:
            window = max(1, min(_SHUFFLE_WINDOW, self.rows))
            shuffling = {"local_shuffle_buffer_size": window, "local_shuffle_seed": shuffle_seed}
        return map(self._to_example, self._source.iter_batches(batch_size=batch_size, **shuffling))
