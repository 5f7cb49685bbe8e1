"""A worker's share of a split: read once when small, streamed when large, every row once in each pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from semr.training.shard import Batch, Example, Shard

ROWS = 25


class Source:
    """Rows 0..24, as Ray's iterator gives them; counts its passes and keeps the last one's options."""

    def __init__(self) -> None:
        self.passes = 0
        self.options: dict[str, Any] = {}

    def iter_batches(self, *, batch_size: int, **options: Any) -> Iterator[Batch]:
        self.passes += 1
        self.options = options
        for start in range(0, ROWS, batch_size):
            yield {"value": np.arange(start, min(start + batch_size, ROWS))}


def to_example(batch: Batch) -> Example:
    return batch["value"].astype(np.float32)[:, None], batch["value"]


def rows_of(batches: Iterator[Example]) -> list[int]:
    rows: list[int] = []
    for inputs, targets in batches:
        assert np.array_equal(inputs[:, 0], targets)
        rows += targets.tolist()
    return rows


@pytest.fixture
def source() -> Source:
    return Source()


def test_a_small_share_is_read_once(source: Source) -> None:
    shard = Shard(source, to_example, ROWS)  # type: ignore[arg-type]
    assert shard.arrays is not None
    assert rows_of(iter([shard.arrays])) == list(range(ROWS))
    assert source.passes == 1


def test_a_large_share_is_streamed(source: Source) -> None:
    shard = Shard(source, to_example, ROWS, memory_limit=ROWS)  # type: ignore[arg-type]
    assert shard.arrays is None
    assert rows_of(shard.stream(4, shuffle_seed=7)) == list(range(ROWS))
    assert source.options == {"local_shuffle_buffer_size": ROWS, "local_shuffle_seed": 7}
    assert rows_of(shard.stream(4)) == list(range(ROWS))
    assert source.options == {}
    assert source.passes == 3  # one to see the first rows


def test_the_first_examples_tell_shapes(source: Source) -> None:
    inputs, targets = Shard(source, to_example, ROWS).first  # type: ignore[arg-type]
    assert inputs.shape == (2, 1)
    assert targets.tolist() == [0, 1]
