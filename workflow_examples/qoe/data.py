"""Bring cell measurement reports into the object store: `semr data qoe --source synthetic`.

The result is a version of the dataset `qoe-raw` with one split `all`, one row a cell and report in the order of the source;
columns: `workflow_examples.qoe.reports.SCHEMA`. The same source gives the same version again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
from rich.console import Console

from semr.errors import InvalidInputError, SemrError
from semr.storage import DatasetVersion, ObjectStore
from workflow_examples.qoe.reports import Reading, read_reports, shifted
from workflow_examples.qoe.synthetic import Synthetic, json_lines

DATASET = "qoe-raw"
SPLIT = "all"
SYNTHETIC = "synthetic"
#: A row has some 60 bytes: several parts for parallel readers from a few hundred thousand rows on.
ROWS_PER_PART = 131_072
MOST_MALFORMED = 0.01


@dataclass(frozen=True)
class Ingested:
    """A version of `qoe-raw`, what was met on the way, and where the malformed lines are kept ("" when there are none)."""

    version: DatasetVersion
    reading: Reading
    quarantine: str


@dataclass(frozen=True)
class Source:
    """Where reports come from: for a person, and as batches, each time from the beginning."""

    description: str
    batches: Callable[[Reading], Iterator[pa.RecordBatch]]


def ingest(
    source: str = SYNTHETIC,
    *,
    synthetic: Synthetic | None = None,
    scale: int = 1,
    most_malformed: float = MOST_MALFORMED,
    store: ObjectStore | None = None,
) -> Ingested:
    """Read `source` as a stream and commit it as a version of the dataset `qoe-raw`; memory does not grow with the data.

    Args:
        source: `synthetic`, or the path of a file of JSON lines, plain or gzip.
        synthetic: what to make, for the source of that name.
        scale: so many times the same reports, each time later than before, after a gap of one period.
        most_malformed: share of malformed lines above which nothing is written.
        store: where to write (default: the object store of the settings).

    Raises:
        InvalidInputError: the source cannot be used; nothing becomes visible then.
        DependencyUnavailableError: the object store does not answer.
    """
    if scale < 1:
        raise InvalidInputError(f"--scale must be at least 1, not {scale}.")
    store = store or ObjectStore.from_settings()
    opened = open_source(source, synthetic or Synthetic())
    reading = Reading()
    description = opened.description if scale == 1 else f"{opened.description}, {scale} times"
    version = store.write_dataset(
        DATASET,
        {SPLIT: repeated(opened, scale, most_malformed, reading)},
        source=description,
        rows_per_part=ROWS_PER_PART,
    )
    return Ingested(version, reading, _put_aside(store, version, reading))


def open_source(source: str, synthetic: Synthetic) -> Source:
    """The source of that name, or the file.

    Raises:
        InvalidInputError: there is none.
    """
    if source == SYNTHETIC:
        return Source(synthetic.description, lambda reading: _counted(synthetic.batches(), reading))
    path = Path(source)
    if not path.is_file():
        raise InvalidInputError(
            f"There is no file {source!r}: name one of JSON lines (plain or .gz), or {SYNTHETIC!r}."
        )
    return Source(str(path), lambda reading: read_reports(path, reading))


def cells_of(version: DatasetVersion, store: ObjectStore) -> dict[str, int]:
    """Reports of each cell as they are in the object store, in the order of the names."""
    names = store.read(version, SPLIT, columns=["cell"])["cell"].value_counts()
    return dict(sorted((each["values"].as_py(), each["counts"].as_py()) for each in names))


def export(source: str, synthetic: Synthetic, path: Path) -> int:
    """Write synthetic reports as a file of the simulator's format; returns the number of lines."""
    if source != SYNTHETIC:
        raise InvalidInputError("--export writes synthetic reports: leave --source out.")
    lines = 0
    with path.open("wb") as file:
        for batch in synthetic.batches():
            for line in json_lines(batch):
                file.write(line)
                lines += 1
    return lines


def main(argv: Sequence[str]) -> int:
    """The command; `argv` without the program's name. Returns the exit code, errors go to standard error."""
    options = _parser().parse_args(argv)
    try:
        synthetic = Synthetic(
            cells=options.cells,
            reports=options.reports,
            seed=options.seed,
            regime_at=options.regime_at,
            regime_level=options.regime_level,
            regime_period=options.regime_period,
        )
        if options.export is not None:
            print(f"lines     {export(options.source, synthetic, options.export)}")
            print(f"location  {options.export}")
            return 0
        store = ObjectStore.from_settings()
        store.check()
        known = {version.version for version in store.versions(DATASET)}
        with Console(stderr=True).status("Reading reports …"):
            done = ingest(
                options.source,
                synthetic=synthetic,
                scale=options.scale,
                most_malformed=options.most_malformed,
                store=store,
            )
    except SemrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    state = "was there already, nothing new was stored" if done.version.version in known else "stored"
    print(f"dataset   {done.version.name}")
    print(f"version   {done.version.version} ({state})")
    print(f"rows      {done.version.rows} of {len(cells_of(done.version, store))} cells")
    print(f"times     {done.reading.first} to {done.reading.last}")
    print(f"source    {done.version.source}")
    if done.reading.malformed:
        first = ", ".join(str(each.line) for each in done.reading.kept[:5])
        print(
            f"malformed {done.reading.malformed} of {done.reading.lines} lines (first: {first}), in {done.quarantine}"
        )
    print(f"location  {done.version.uri}")
    return 0


def repeated(source: Source, scale: int, most_malformed: float, reading: Reading) -> Iterator[pa.RecordBatch]:
    """The reports `scale` times, each time later; see `ingest`."""
    yield from source.batches(reading)
    if reading.malformed_share > most_malformed:
        first = reading.kept[0]
        raise InvalidInputError(
            f"{reading.malformed} of {reading.lines} lines of {source.description} are malformed "
            f"({reading.malformed_share:.1%}, allowed are {most_malformed:.1%}), the first in line {first.line}: "
            f"{first.text[:80]!r}. Nothing was stored."
        )
    if not reading.rows:
        raise InvalidInputError(f"{source.description} has no cell measurement reports.")
    # Two periods, so that a gap is between the last report and its repetition.
    period = timedelta(milliseconds=reading.period)
    span = timedelta(microseconds=int((_time(reading.last) - _time(reading.first)) / np.timedelta64(1, "us")))
    for repetition in range(1, scale):
        for batch in source.batches(Reading(most_kept=0)):
            yield shifted(batch, repetition * (span + 2 * period))


def _time(value: np.datetime64 | None) -> np.datetime64:
    return np.datetime64(0, "us") if value is None else value


def _counted(batches: Iterator[pa.RecordBatch], reading: Reading) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        reading.note(batch)
        reading.reports += batch.num_rows
        yield batch


def _put_aside(store: ObjectStore, version: DatasetVersion, reading: Reading) -> str:
    """Keep the malformed lines beside the version; returns where."""
    if not reading.kept:
        return ""
    key = f"{store.bucket}/{DATASET}/quarantine/{version.version}.jsonl"
    with store.connection.named_errors(), store.filesystem.open_output_stream(key) as stream:
        for each in reading.kept:
            stream.write(orjson.dumps({"line": each.line, "text": each.text}) + b"\n")
    return f"s3://{key}"


def _parser() -> argparse.ArgumentParser:
    default = Synthetic()
    parser = argparse.ArgumentParser(
        prog="semr data qoe",
        description="Bring cell measurement reports into the object store, as a version of the dataset qoe-raw.",
        epilog="The same source always gives the same version. A file that cannot be used is an error with exit code 2.",
    )
    parser.add_argument(
        "--source",
        default=SYNTHETIC,
        metavar="synthetic|PATH",
        help="synthetic: made-up reports of some cells (default). A path: JSON lines as the O-RAN simulator writes them, "
        "plain or .gz. Malformed lines are counted and kept aside with their numbers.",
    )
    parser.add_argument(
        "--scale", type=int, default=1, metavar="N", help="the reports N times, each time later (default: 1)"
    )
    parser.add_argument(
        "--most-malformed",
        type=float,
        default=MOST_MALFORMED,
        metavar="SHARE",
        help=f"stop and store nothing above this share of malformed lines (default: {MOST_MALFORMED:g})",
    )
    made = parser.add_argument_group("synthetic reports")
    made.add_argument("--cells", type=int, default=default.cells, help=f"number of cells (default: {default.cells})")
    made.add_argument(
        "--reports",
        type=int,
        default=default.reports,
        help=f"five-minute reports of each cell (default: {default.reports}, two weeks)",
    )
    made.add_argument("--seed", type=int, default=0, help="of all chance (default: 0)")
    made.add_argument("--regime-at", type=int, metavar="REPORT", help="report from which the load is another one")
    made.add_argument(
        "--regime-level", type=float, default=default.regime_level, help=f"factor (default: {default.regime_level:g})"
    )
    made.add_argument(
        "--regime-period",
        type=int,
        default=default.regime_period,
        help=f"periods of its additional wave, 0 for none (default: {default.regime_period})",
    )
    made.add_argument("--export", type=Path, metavar="FILE", help="write them to a file of JSON lines instead")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
