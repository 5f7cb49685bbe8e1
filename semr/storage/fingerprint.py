"""Content hash of an Arrow table that does not depend on chunking, slicing, Parquet options or the version of Arrow.

The digest runs over the schema metadata, sorted by key, and over the columns in order. Each column contributes its name, its
type in the notation of `type_name`, and its values: a validity bitmap (only when there are nulls) followed by the valid
values in row order, little endian, without padding. Values in the slots of nulls are undefined in Arrow, so left out.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from semr.errors import InvalidInputError

if TYPE_CHECKING:
    from hashlib import _Hash


def type_name(kind: pa.DataType) -> str:
    """Canonical name of an Arrow type; unlike `str(kind)` free of the names that list children happen to carry.

    Raises:
        InvalidInputError: the type has no stable content, for example a dictionary or a union.
    """
    if pt.is_fixed_size_list(kind):
        return f"fixed_size_list<{type_name(kind.value_type)}>[{kind.list_size}]"
    if pt.is_large_list(kind):
        return f"large_list<{type_name(kind.value_type)}>"
    if pt.is_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if pt.is_struct(kind):
        return "struct<" + ", ".join(f"{field.name}: {type_name(field.type)}" for field in kind) + ">"
    if _is_bytes(kind) or _is_fixed_width(kind):
        return str(kind)
    raise InvalidInputError(f"Values of the Arrow type {kind} cannot be stored: cast them to a plain type.")


def table_sha256(table: pa.Table) -> str:
    """SHA-256 of the table's content as 64 hexadecimal digits.

    Raises:
        InvalidInputError: a column has a type without stable content.
    """
    digest = hashlib.sha256()
    for key, value in sorted((table.schema.metadata or {}).items()):
        digest.update(b"metadata\0%d\0%d\0" % (len(key), len(value)) + key + value)
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(f"{name}\0{type_name(column.type)}\0{len(column)}\0".encode())
        _update(digest, _one_array(column))
    return digest.hexdigest()


def _is_bytes(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pt.is_string, pt.is_binary, pt.is_large_string, pt.is_large_binary))


def _is_fixed_width(kind: pa.DataType) -> bool:
    return (pt.is_primitive(kind) or pt.is_decimal(kind) or pt.is_fixed_size_binary(kind)) and not pt.is_null(kind)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])


def _update(digest: _Hash, array: pa.Array) -> None:
    """Feed one array, recursively; after the bitmap every step sees an array without nulls at its own level."""
    kind = array.type
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        digest.update(b"nulls\0" + np.packbits(valid, bitorder="little").tobytes())
        array = array.drop_null()
    if len(array) == 0:
        return
    if pt.is_fixed_size_list(kind):
        _update(digest, array.flatten())
    elif pt.is_list(kind) or pt.is_large_list(kind):
        digest.update(pc.list_value_length(array).cast(pa.int64()).to_numpy().tobytes())
        _update(digest, array.flatten())
    elif pt.is_struct(kind):
        for child in array.flatten():
            _update(digest, child)
    elif _is_bytes(kind):
        _update_bytes(digest, array)
    elif pt.is_boolean(kind):
        digest.update(np.packbits(array.to_numpy(zero_copy_only=False), bitorder="little").tobytes())
    else:
        width = kind.bit_width // 8
        start = array.offset * width
        digest.update(memoryview(array.buffers()[1])[start : start + len(array) * width])


def _update_bytes(digest: _Hash, array: pa.Array) -> None:
    """Feed lengths and bytes of a string or binary array; its 32 or 64 bit offsets may start anywhere in the buffer."""
    wide = pt.is_large_string(array.type) or pt.is_large_binary(array.type)
    _, offsets_buffer, data = array.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64 if wide else np.int32)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    digest.update(np.diff(offsets).astype(np.int64).tobytes())
    if data is not None:
        digest.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])
