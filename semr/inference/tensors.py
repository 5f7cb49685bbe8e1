"""Tensors of the Open Inference Protocol as NumPy arrays: from JSON or raw bytes, and back.

Raw bytes are those of the binary tensor extension: little-endian, row-major, no padding; BOOL is one byte of 0 or 1; an
element of BYTES is its length as a 4-byte unsigned integer, then its bytes
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md).

In memory a BYTES tensor is an array of dtype object that holds `bytes`.
"""

from __future__ import annotations

import math
import struct
from array import array as plain_array
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError

Array = npt.NDArray[Any]

#: The protocol's names of datatypes and NumPy's.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
BYTES = "BYTES"
#: NumPy allows 64.
MOST_AXES = 32

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
# NumPy would turn text, booleans and fractions into numbers without a word; these are the JSON types that each kind takes.
_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
# Type codes of Python's own arrays, which take numbers of fitting kind only, and booleans.
_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
_LENGTH = struct.Struct("<I")


class InvalidTensorError(InvalidInputError):
    """A tensor does not say what it holds: unknown datatype, or data that do not fit shape or datatype."""


def datatype_name(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a NumPy dtype; text of any length is BYTES.

    Raises:
        InvalidTensorError: the protocol has no such datatype.
    """
    dtype = np.dtype(dtype)
    if dtype.kind in "US":
        return BYTES
    name = _NAMES.get(dtype.newbyteorder("="))
    if name is None:
        raise InvalidTensorError(f"The Open Inference Protocol has no datatype for {dtype}.")
    return name


def from_json(name: str, datatype: str, shape: Sequence[int], data: list[Any], *, has_booleans: bool = True) -> Array:
    """The tensor `name` from a parsed JSON array, flat in row-major order or nested as `shape` says.

    Args:
        name: of the tensor.
        datatype: its name in the protocol.
        shape: of the tensor.
        data: elements, or lists of them.
        has_booleans: whether there may be any among the elements; where there are none, numbers are read faster.

    Raises:
        InvalidTensorError: unknown datatype, bad shape, wrong number of elements, or elements that do not fit.
    """
    dtype = _dtype(name, datatype)
    size = _size(name, shape)
    if not has_booleans and len(data) == size and datatype in _CODES:
        try:
            array = np.frombuffer(plain_array(_CODES[datatype], data), dtype)
        except (TypeError, OverflowError):
            pass  # what exactly is wrong, or nested, the long way finds out
        else:
            if is_finite(array):
                return _reshape(name, array, shape)
    types = set(map(type, data))
    if list in types:
        data = _flat(name, shape, data)
        types = set(map(type, data))
    if not types <= _JSON_TYPES[dtype.kind]:
        raise InvalidTensorError(f"Input {name!r} has data that are not {datatype} in an even nesting.")
    if len(data) != size:
        raise InvalidTensorError(f"Input {name!r} has {len(data)} elements, but its shape {list(shape)} needs {size}.")
    return _reshape(name, _parse(name, datatype, dtype, data), shape)


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """The tensor `name` from raw bytes; a view of them where their alignment allows it.

    Raises:
        InvalidTensorError: unknown datatype, bad shape, or bytes that do not make up the tensor.
    """
    dtype = _dtype(name, datatype)
    size = _size(name, shape)
    if datatype == BYTES:
        return _reshape(name, _split(name, size, data), shape)
    if len(data) != size * dtype.itemsize:
        raise InvalidTensorError(
            f"Input {name!r} has {len(data)} bytes, but shape {list(shape)} of {datatype} needs {size * dtype.itemsize}."
        )
    if datatype == "BOOL" and len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise InvalidTensorError(f"Input {name!r} has bytes other than 0 and 1, so it is not BOOL.")
    array = np.frombuffer(data, dtype.newbyteorder("<"))
    if not array.flags.aligned:
        array = array.copy()
    return _reshape(name, array.astype(dtype, copy=False), shape)


def to_json(array: Array) -> Array | list[Any]:
    """What a JSON encoder that knows NumPy writes as the tensor's flat data.

    Raises:
        InvalidTensorError: an element of BYTES is not UTF-8, so that only raw bytes can carry it.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind in "OSU":
        try:
            return [_as_bytes(element).decode() for element in flat.tolist()]
        except UnicodeDecodeError as error:
            raise InvalidTensorError(
                "Bytes that are not UTF-8 text do not fit into JSON: ask for binary data."
            ) from error
    return flat.astype(np.float32) if flat.dtype == np.float16 else flat


def to_bytes(array: Array) -> bytes:
    """The tensor's raw bytes."""
    if array.dtype.kind in "OSU":
        elements = [_as_bytes(element) for element in array.ravel().tolist()]
        return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in elements))
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def is_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite; true for what cannot be."""
    if array.dtype.kind != "f":
        return True
    # A sum of finite numbers may overflow, but one with NaN or infinity is never finite.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(array.sum()) or bool(np.isfinite(array).all())


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise InvalidTensorError(f"Input {name!r} has datatype {datatype!r}; known are {', '.join(DATATYPES)}.")
    return dtype


def _size(name: str, shape: Sequence[int]) -> int:
    if len(shape) > MOST_AXES:
        raise InvalidTensorError(f"Input {name!r} has {len(shape)} axes; at most {MOST_AXES} are taken.")
    if any(size < 0 for size in shape):
        raise InvalidTensorError(f"Input {name!r} has a negative size in its shape {list(shape)}.")
    return math.prod(shape)


def _flat(name: str, shape: Sequence[int], data: list[Any]) -> list[Any]:
    level, sizes = data, [len(data)]
    while level and type(level[0]) is list:
        if set(map(type, level)) != {list} or len(set(map(len, level))) != 1:
            raise InvalidTensorError(f"Input {name!r} has data that are not in an even nesting.")
        sizes.append(len(level[0]))
        level = list(chain.from_iterable(level))
    # The innermost lists may hold several axes in a row; what is nested further out must be nested as the shape says.
    if sizes[:-1] != list(shape[: len(sizes) - 1]):
        raise InvalidTensorError(f"Input {name!r} has data nested as {sizes}, which is not its shape {list(shape)}.")
    return level


def _parse(name: str, datatype: str, dtype: np.dtype[Any], data: list[Any]) -> Array:
    if dtype.kind == "O":
        texts = np.empty(len(data), dtype)
        texts[:] = [text.encode() for text in data]
        return texts
    refusal = InvalidTensorError(f"Input {name!r} has values outside of the range of {datatype}.")
    try:
        with np.errstate(over="ignore"):
            array = np.array(data, dtype)
    except OverflowError as error:
        raise refusal from error
    # JSON has no infinity: what is infinite now was too large.
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise refusal
    return array


def _split(name: str, size: int, data: memoryview) -> Array:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else start
        if end > len(data):
            raise InvalidTensorError(f"Input {name!r} ends in the middle of an element of BYTES.")
        elements.append(bytes(data[start:end]))
        at = end
    if len(elements) != size:
        raise InvalidTensorError(f"Input {name!r} has {len(elements)} elements of BYTES; its shape needs {size}.")
    array = np.empty(size, object)
    array[:] = elements
    return array


def _reshape(name: str, array: Array, shape: Sequence[int]) -> Array:
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:  # an empty tensor whose other sizes NumPy cannot count
        raise InvalidTensorError(f"Input {name!r} has a shape that is too large: {list(shape)}.") from error


def _as_bytes(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode()
    raise InvalidTensorError(f"A tensor of BYTES holds a {type(element).__name__}, which is neither text nor bytes.")
