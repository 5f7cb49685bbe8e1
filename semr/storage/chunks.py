"""Cut a stream of record batches into tables of a fixed number of rows: batching leaves no trace in a version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from semr.errors import InvalidInputError


def fixed_rows(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Yield tables of exactly `rows` rows, the last one of the rest; holds at most that many rows and one batch.

    Raises:
        InvalidInputError: a batch has another schema than the first one.
    """
    waiting: list[pa.RecordBatch] = []
    held = 0
    schema: pa.Schema | None = None
    for batch in batches:
        if schema is None:
            schema = batch.schema
        elif not batch.schema.equals(schema):
            raise InvalidInputError(
                f"All batches of a split need one schema: expected {_columns(schema)}, found {_columns(batch.schema)}."
            )
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, rows - held)
            waiting.append(piece)
            held += piece.num_rows
            start += piece.num_rows
            if held == rows:
                yield pa.Table.from_batches(waiting, schema)
                waiting, held = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
