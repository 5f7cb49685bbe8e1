"""What a model shows on its example before it is served: that it works, what a call takes, whether rows may be batched."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from semr.inference.protocol import TensorMetadata
from semr.inference.runtime.contract import Contract
from semr.inference.runtime.model import Cost, Predict
from semr.inference.tensors import Array

# Kernels for several rows add in another order than those for one.
_TOLERANCE = 1e-3
_TIMED_ROWS = 8
_TRIES = 5
# Slow models are not kept from service by measuring them.
_MOST_SECONDS = 1.0


def first_rows(example: Mapping[str, Array], inputs: tuple[TensorMetadata, ...], rows: int) -> dict[str, Array]:
    """`rows` rows of the example, going round it; tensors without a batch axis as they are."""
    batched = {tensor.name for tensor in inputs if tensor.shape and tensor.shape[0] == -1}
    return {
        name: np.take(array, np.arange(rows) % len(array), axis=0) if name in batched else array
        for name, array in example.items()
    }


def are_rows_independent(predict: Predict, contract: Contract, example: Mapping[str, Array]) -> bool:
    """Whether a row is answered the same alone and among others, which are other rows where the input is of real numbers.

    A model whose outputs have no row for each row of input, or that answers by chance, is none.
    """
    if not all(tensor.shape and tensor.shape[0] == -1 for tensor in contract.inputs):
        return False
    one = first_rows(example, contract.inputs, 1)
    several = first_rows(example, contract.inputs, 3)
    random = np.random.default_rng(0)
    for array in several.values():
        if array.dtype.kind == "f":
            array[1:] = random.random(array[1:].shape)
    try:
        alone, together = predict(one), predict(several)
    except Exception:  # noqa: BLE001 - it works for one row, as was tried before; then it gets one at a time
        return False
    return all(
        array.ndim > 0
        and len(array) == 1
        and together[name].shape == (3, *array.shape[1:])
        and _are_equal(together[name][:1], array)
        for name, array in alone.items()
    )


def measure(predict: Predict, contract: Contract, example: Mapping[str, Array], is_batchable: bool) -> Cost:
    """The best of a few calls: what a call takes on a quiet machine."""
    one = _best(predict, first_rows(example, contract.inputs, 1))
    if not is_batchable:
        return Cost(one, one)
    many = _best(predict, first_rows(example, contract.inputs, _TIMED_ROWS))
    return Cost(one, max(0.0, (many - one) / (_TIMED_ROWS - 1)))


def _best(predict: Predict, inputs: dict[str, Array]) -> float:
    best, began = float("inf"), time.perf_counter()
    for _ in range(_TRIES):
        started = time.perf_counter()
        predict(inputs)
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended - began > _MOST_SECONDS:
            break
    return best


def _are_equal(found: Array, expected: Array) -> bool:
    if expected.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    return bool(np.allclose(found, expected, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True))
