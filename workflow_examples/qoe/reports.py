"""Cell measurement reports, as the O-RAN simulator writes them: JSON lines to a table with one row a cell and report.

A line of interest has the key `cellMeasReport` with `measTimeStampRf` and the list `cellMeasReportList`; lines of other
kinds are passed over. A line that is no JSON, or whose report lacks what the table needs, is malformed: it is kept aside
with its number, and the rest is read.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from semr.errors import InvalidInputError

#: Columns that grow for ever and start again from 0; the others are levels.
COUNTERS = ("pdcpBytesDl", "pdcpBytesUl")
LEVELS = ("throughput", "availPrbDl", "availPrbUl")
MEASURES = (*COUNTERS, *LEVELS)

#: One row: a cell's measures at a time (microseconds, as the report tells it, without a time zone), and the
#: measurement period in milliseconds.
SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("time", pa.timestamp("us")),
        ("period", pa.int32()),
        *((name, pa.float64()) for name in MEASURES),
    ]
)

# No counter of 64 bits tells more. A measure beyond it is an error, and the squares of far larger ones have no sum.
_LARGEST_MEASURE = 2.0**64
# Text that is read and parsed at once.
_BLOCK_BYTES = 8 * 2**20
_GZIP_MAGIC = b"\x1f\x8b"

# What becomes of a parsed cell: its name, the measurement period, then `MEASURES` in their order.
_Cell = tuple[Any, ...]


@dataclass(frozen=True)
class Malformed:
    """A line that cannot be used: its number, counted from 1, and its text."""

    line: int
    text: str


@dataclass
class Reading:
    """What a pass over a file has met so far.

    Attributes:
        lines: read, without empty ones.
        reports: measurement reports among them.
        rows: cells in these reports.
        malformed: lines that cannot be used.
        most_kept: so many of them are kept with their text in `kept`.
        kept: the first of them.
        first, last: times of the earliest and the latest report, None before there is one.
        period: longest measurement period in milliseconds.
    """

    lines: int = 0
    reports: int = 0
    rows: int = 0
    malformed: int = 0
    most_kept: int = 10_000
    kept: list[Malformed] = field(default_factory=list)
    first: np.datetime64 | None = None
    last: np.datetime64 | None = None
    period: int = 0

    @property
    def malformed_share(self) -> float:
        """Share of the lines that cannot be used."""
        return self.malformed / self.lines if self.lines else 0.0

    def note(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Count cells of reports, columns as `SCHEMA`."""
        self.rows += rows.num_rows
        if rows.num_rows:
            bounds = pc.min_max(rows["time"].cast(pa.int64())).as_py()
            first, last = np.datetime64(bounds["min"], "us"), np.datetime64(bounds["max"], "us")
            self.first = first if self.first is None else min(self.first, first)
            self.last = last if self.last is None else max(self.last, last)
            self.period = max(self.period, int(pc.max(rows["period"]).as_py()))


def read_reports(path: Path, reading: Reading | None = None) -> Iterator[pa.RecordBatch]:
    """The reports of a file of JSON lines, plain or gzip, as batches of `SCHEMA` in the order of the lines.

    Holds some 8 MB of text at a time, whatever the file's size.

    Args:
        path: the file.
        reading: told what was met.

    Raises:
        InvalidInputError: the file cannot be read, or is cut off in the middle of its compression.
    """
    reading = reading or Reading()
    number = 0
    try:
        with _open(path) as stream:
            while lines := stream.readlines(_BLOCK_BYTES):
                block = _Block(first_line=number + 1)
                number += len(lines)
                for line in lines:
                    block.add(line, reading)
                rows = block.table(reading)
                if rows.num_rows:
                    yield from rows.to_batches()
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}.") from error


def _open(path: Path) -> IO[bytes]:
    file = path.open("rb")
    is_gzip = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=file)) if is_gzip else file


@dataclass
class _Block:
    """Lines that were read together: their reports are checked as columns, not one by one."""

    first_line: int
    texts: list[bytes] = field(default_factory=list)
    stamps: list[Any] = field(default_factory=list)
    reports: list[list[_Cell]] = field(default_factory=list)
    wrong: list[tuple[int, bytes]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def add(self, line: bytes, reading: Reading) -> None:
        number = self.first_line
        self.first_line += 1
        if line.isspace():
            return
        reading.lines += 1
        try:
            content = orjson.loads(line)
            if "cellMeasReport" not in content:
                if not isinstance(content, dict):
                    raise TypeError
                return
            report = content["cellMeasReport"]
            cells = [_cell(each) for each in report["cellMeasReportList"]]
            stamp = report["measTimeStampRf"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            self.wrong.append((number, line))
            return
        self.numbers.append(number)
        self.texts.append(line)
        self.stamps.append(stamp)
        self.reports.append(cells)

    def table(self, reading: Reading) -> pa.Table:
        """The cells of the good reports; the others are put aside."""
        rows, is_good = _checked(self.stamps, self.reports)
        self.wrong += [(self.numbers[index], self.texts[index]) for index in np.flatnonzero(~is_good)]
        reading.malformed += len(self.wrong)
        for number, text in sorted(self.wrong)[: reading.most_kept - len(reading.kept)]:
            reading.kept.append(Malformed(number, text.decode(errors="replace").rstrip("\r\n")))
        reading.reports += int(is_good.sum())
        reading.note(rows)
        return rows


def _cell(content: Any) -> _Cell:  # noqa: ANN401 - whatever the JSON has
    volume, blocks = content["pdcpByteMeasReport"], content["prbMeasReport"]
    return (
        content["nrCellIdentity"],
        volume["measPeriodPdcpBytes"],
        volume["pdcpBytesDl"],
        volume["pdcpBytesUl"],
        content["throughput"],
        blocks["availPrbDl"],
        blocks["availPrbUl"],
    )


def _checked(stamps: list[Any], reports: list[list[_Cell]]) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """The cells of the good reports as a table, and which reports (reports,) are good."""
    if not reports:
        return SCHEMA.empty_table(), np.zeros(0, dtype=bool)
    flat = [cell for cells in reports for cell in cells]
    columns = list(zip(*flat, strict=True)) or [()] * (2 + len(MEASURES))
    try:
        times = pc.cast(pa.array(stamps, pa.string()), pa.timestamp("us"))
        names = pa.array(columns[0], pa.string())
        periods, *measures = [pa.array(column, pa.float64()) for column in columns[1:]]
    except pa.ArrowException:
        # A text where a number belongs, or a time that is none: halve until it stands alone.
        if len(reports) == 1:
            return SCHEMA.empty_table(), np.zeros(1, dtype=bool)
        middle = len(reports) // 2
        halves = [_checked(stamps[:middle], reports[:middle]), _checked(stamps[middle:], reports[middle:])]
        return pa.concat_tables([rows for rows, _ in halves]), np.concatenate([good for _, good in halves])
    numbers = np.stack([each.to_numpy(zero_copy_only=False) for each in (periods, *measures)])
    with np.errstate(invalid="ignore"):
        is_cell_good = np.asarray(names.is_valid()) & ((numbers >= 0) & (numbers <= _LARGEST_MEASURE)).all(axis=0)
        is_cell_good &= (numbers[0] >= 1) & (numbers[0] < 2**31)
    report_of = np.repeat(np.arange(len(reports)), [len(cells) for cells in reports])
    is_good = np.asarray(times.is_valid()).copy()
    is_good[report_of[~is_cell_good]] = False
    kept = np.flatnonzero(is_good[report_of])
    numbers = numbers[:, kept]
    arrays = [
        names.take(pa.array(kept)),
        times.take(pa.array(report_of[kept])),
        pa.array(np.rint(numbers[0]).astype(np.int32)),
        *map(pa.array, numbers[1:]),
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA), is_good


def shifted(batch: pa.RecordBatch, by: timedelta) -> pa.RecordBatch:
    """The same measures, later by `by`."""
    column = batch.schema.get_field_index("time")
    later = pc.add(batch.column(column), pa.scalar(by, pa.duration("us")))
    return batch.set_column(column, SCHEMA.field("time"), later)
