"""What frameworks take and return, from and to arrays by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from semr.inference.runtime.contract import Contract
from semr.inference.runtime.model import InvalidRequestError
from semr.inference.tensors import Array


def named(result: Any, names: Sequence[str]) -> dict[str, Array]:  # noqa: ANN401 - whatever a model returns
    """A model's result as arrays: a mapping or a data frame by its own names, several by `names`, one by the first name."""
    if isinstance(result, Mapping):
        return {str(name): as_array(value) for name, value in result.items()}
    if isinstance(result, pd.DataFrame):
        return {str(name): as_array(result[name]) for name in result.columns}
    if isinstance(result, tuple) or (isinstance(result, list) and len(names) > 1 and len(result) == len(names)):
        return {
            names[index] if index < len(names) else f"output-{index}": as_array(value)
            for index, value in enumerate(result)
        }
    return {names[0] if names else "output-0": as_array(result)}


def as_array(value: Any) -> Array:  # noqa: ANN401 - whatever a model returns
    """An array of what NumPy can take, a tensor or a column among it."""
    if isinstance(value, pd.Series):
        value = value.to_numpy()
    elif hasattr(value, "toarray"):  # SciPy's sparse matrices
        value = value.toarray()
    return np.asarray(value)


def as_text(array: Array) -> Array:
    """BYTES as text, which models in Python expect.

    Raises:
        InvalidRequestError: an element is not UTF-8.
    """
    texts = np.empty(array.size, object)
    try:
        texts[:] = [element.decode() for element in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"An element of BYTES is not UTF-8 text: {error}.") from error
    return texts.reshape(array.shape)


def as_table(arrays: Mapping[str, Array], contract: Contract) -> pd.DataFrame:
    """Columns as a data frame in the order of the contract.

    Raises:
        InvalidRequestError: text that is not UTF-8, or that is no time where one is wanted.
    """
    columns: dict[str, Any] = {}
    for tensor in contract.inputs:
        array = arrays.get(tensor.name)
        if array is None:
            continue
        if array.dtype == object and tensor.name not in contract.binary:
            array = as_text(array)
        if tensor.name in contract.dates:
            try:
                columns[tensor.name] = pd.to_datetime(array, format="ISO8601")
            except ValueError as error:
                raise InvalidRequestError(f"Input {tensor.name!r} is no time in ISO 8601: {error}.") from error
        else:
            columns[tensor.name] = array
    return pd.DataFrame(columns)
