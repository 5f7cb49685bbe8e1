"""Ray job: reports to a dataset version of scaled windows with the splits train, validation and holdout, in the order of time.

Two passes on Ray Data. The first brings the reports of each cell together and writes its clean rates, as a version of the
dataset `qoe-series`; it leaves sums, of which the scaling is made. The second cuts and scales the windows of each cell. The
driver sees only descriptions of parts.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semr.errors import InvalidInputError
from semr.job_entry import job_main, join_cluster, tracked_run
from semr.storage import DatasetVersion, ObjectStore, Part
from workflow_examples.qoe.data import DATASET as RAW_DATASET
from workflow_examples.qoe.data import SPLIT as RAW_SPLIT
from workflow_examples.qoe.features import (
    Scaling,
    Series,
    Sums,
    WindowPlan,
    clean,
    cut,
    examples,
    scaling_of,
    schema_of,
    split_bounds,
    split_of,
)

DATASET = "qoe"
SERIES_DATASET = "qoe-series"
EXPERIMENT = "qoe"
SPLITS = ("train", "validation", "holdout")
# 100 bytes a row: parts of some MB.
_ROWS_PER_PART = 65_536
_READERS = 8
# A task holds the reports of its cells. Each further process takes seconds to start.
_ROWS_PER_TASK = 500_000
_MOST_TASKS = 64


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare.

    Attributes:
        raw_version: version of `qoe-raw`.
        cells: names of cells; all when empty.
        plan: how examples are cut.
    """

    raw_version: str
    cells: tuple[str, ...] = ()
    plan: WindowPlan = field(default_factory=WindowPlan)


def prepare(config: PrepareConfig) -> None:
    """Write the dataset version and leave it in this job's MLflow run."""
    import mlflow  # noqa: PLC0415 - the steps import this module for its names

    from semr.tracking import DATASET_TAG  # noqa: PLC0415

    store = ObjectStore.from_settings()
    raw = store.dataset(RAW_DATASET, config.raw_version)
    join_cluster()
    with tracked_run(EXPERIMENT, "prepare"):
        mlflow.log_params({"raw_version": raw.version, "source": raw.source, "cells": ", ".join(config.cells) or "all"})
        mlflow.log_params(asdict(config.plan))
        version = run(store, raw, config)
        mlflow.log_metrics({f"rows_{split}": count for split, count in version.splits.items()})
        mlflow.set_tag(DATASET_TAG, version.version)
        print(f"dataset {version.name} version {version.version}: {version.splits}")


def run(store: ObjectStore, raw: DatasetVersion, config: PrepareConfig) -> DatasetVersion:
    """The feature step itself, on the Ray cluster that this process has joined.

    Raises:
        InvalidInputError: a cell is not in the data, or a split would be empty.
    """
    plan = config.plan
    bounds = split_bounds(*_time_range(store, raw), plan)
    cleaned = _clean_all(store, raw, config, bounds)
    missing = sorted(set(config.cells) - {each["cell"] for each in cleaned})
    if missing:
        raise InvalidInputError(
            f"There are no reports of {', '.join(missing)} in {raw.source} (version {raw.version})."
        )
    series = [each for each in cleaned if each["part"]]
    if not series:
        raise InvalidInputError(
            f"No cell has two successive reports in {raw.source}, so there is nothing to learn from."
        )
    store.commit(
        SERIES_DATASET,
        [Part(**json.loads(each["part"])) for each in series],
        _series_schema(plan),
        source=raw.source,
        parents=(raw.version,),
    )
    scaling = scaling_of([_sums(each) for each in series], plan.columns)
    parts = _window_all(store, [json.loads(each["part"])["key"] for each in series], plan, scaling, bounds, raw.rows)
    empty = [split for split in SPLITS if not any(part.split == split for part in parts)]
    if empty:
        raise InvalidInputError(
            f"No example falls into {', '.join(empty)}: windows of {plan.steps} steps without a gap need more reports."
        )
    return store.commit(DATASET, parts, schema_of(plan, scaling), source=raw.source, parents=(raw.version,))


def _time_range(store: ObjectStore, raw: DatasetVersion) -> tuple[int, int]:
    """Earliest and latest report in microseconds since 1970, from the statistics in the footers of the parts."""

    def of_part(path: str) -> tuple[int, int]:
        with store.connection.named_errors():
            file = pq.ParquetFile(path, filesystem=store.filesystem)
        column = file.schema_arrow.get_field_index("time")
        groups = [file.metadata.row_group(index).column(column).statistics for index in range(file.num_row_groups)]
        return (
            min(int(np.datetime64(each.min, "us").astype(np.int64)) for each in groups),
            max(int(np.datetime64(each.max, "us").astype(np.int64)) for each in groups),
        )

    with ThreadPoolExecutor(_READERS) as pool:
        ranges = list(pool.map(of_part, store.paths(raw, RAW_SPLIT)))
    return min(first for first, _ in ranges), max(last for _, last in ranges)


def _clean_all(
    store: ObjectStore, raw: DatasetVersion, config: PrepareConfig, bounds: tuple[int, int]
) -> list[dict[str, Any]]:
    """One description for each cell, sorted by its name: its part of `qoe-series`, and sums of its training part."""
    import ray.data  # noqa: PLC0415 - takes seconds, and only the driver needs it

    columns = ["cell", "time", "period", *config.plan.columns]
    paths = store.paths(raw, RAW_SPLIT)
    kwargs = {"store": store, "plan": config.plan, "training_ends": bounds[0]}
    if len(paths) == 1:
        # What one task holds needs no shuffle, whose actors take longer to start than all of the work.
        tasks = ray.data.from_items([{"path": paths[0]}], override_num_blocks=1)
        described = tasks.flat_map(_clean_part, fn_kwargs={**kwargs, "columns": columns, "cells": config.cells})
    else:
        reports = ray.data.read_parquet(paths, filesystem=store.filesystem, columns=columns)
        if config.cells:
            chosen = {"cells": config.cells}
            reports = reports.map_batches(_of_cells, batch_format="pyarrow", batch_size=None, fn_kwargs=chosen)
        grouped = reports.groupby("cell", num_partitions=_tasks(raw.rows))
        described = grouped.map_groups(_clean_cells, batch_format="pyarrow", fn_kwargs=kwargs)
    return sorted(described.take_all(), key=lambda each: str(each["cell"]))


def _of_cells(reports: pa.Table, cells: tuple[str, ...]) -> pa.Table:
    return reports.filter(pc.is_in(reports["cell"], pa.array(cells)))


def _clean_part(
    row: dict[str, Any],
    columns: list[str],
    cells: tuple[str, ...],
    store: ObjectStore,
    **kwargs: Any,  # noqa: ANN401
) -> list[dict[str, Any]]:
    """All reports in one go."""
    with store.connection.named_errors():
        reports = pq.read_table(row["path"], columns=columns, filesystem=store.filesystem)
    chosen = _of_cells(reports, cells) if cells else reports
    return _clean_cells(chosen, store, **kwargs).to_pylist() if len(chosen) else []


def _tasks(rows: int) -> int:
    return max(1, min(_MOST_TASKS, rows // _ROWS_PER_TASK))


def _clean_cells(reports: pa.Table, store: ObjectStore, plan: WindowPlan, training_ends: int) -> pa.Table:
    """Write the rates of each cell of `reports` as a part; returns its description: cell, part, sums."""
    described: dict[str, list[str]] = {"cell": [], "part": [], "sums": []}
    names = reports["cell"].combine_chunks().dictionary_encode()
    order = np.argsort(names.indices.to_numpy(), kind="stable")
    ends = np.cumsum(np.bincount(names.indices.to_numpy(), minlength=len(names.dictionary)))
    for name, rows in zip(names.dictionary.to_pylist(), np.split(order, ends[:-1]), strict=True):
        series = clean(reports.take(pa.array(rows)), plan.columns)
        part = ""
        if len(series.times):
            part = json.dumps(asdict(store.write_part(SERIES_DATASET, _series_table(name, series, plan), RAW_SPLIT)))
        sums = Sums.of_training(series, training_ends)
        for key, value in (("cell", name), ("part", part), ("sums", json.dumps(asdict(sums)))):
            described[key].append(value)
    return pa.table(described)


def _sums(described: dict[str, Any]) -> Sums:
    return Sums(**json.loads(described["sums"]))


def _series_schema(plan: WindowPlan) -> pa.Schema:
    return pa.schema(
        [
            ("cell", pa.string()),
            ("time", pa.timestamp("us")),
            ("segment", pa.int64()),
            *((name, pa.float64()) for name in plan.columns),
        ]
    )


def _series_table(name: str, series: Series, plan: WindowPlan) -> pa.Table:
    columns = [
        pa.array([name]).take(pa.array(np.zeros(len(series.times), np.int64))),
        pa.array(series.times).cast(pa.timestamp("us")),
        pa.array(series.segments),
        *(pa.array(column) for column in series.values.T),
    ]
    return pa.Table.from_arrays(columns, schema=_series_schema(plan))


def _window_all(
    store: ObjectStore, keys: list[str], plan: WindowPlan, scaling: Scaling, bounds: tuple[int, int], rows: int
) -> list[Part]:
    import ray.data  # noqa: PLC0415

    tasks = ray.data.from_items(
        [{"order": order, "key": key} for order, key in enumerate(keys)],
        override_num_blocks=min(_tasks(rows), len(keys)),
    )
    kwargs = {"store": store, "plan": plan, "scaling": scaling, "bounds": bounds}
    written = tasks.flat_map(_window_cell, fn_kwargs=kwargs).take_all()
    ordered = sorted(written, key=lambda row: (row["order"], row["index"]))
    return [Part(row["split"], row["rows"], row["sha256"], row["key"]) for row in ordered]


def _window_cell(
    row: dict[str, Any], store: ObjectStore, plan: WindowPlan, scaling: Scaling, bounds: tuple[int, int]
) -> list[dict[str, Any]]:
    """The examples of one cell as parts of each split."""
    with store.connection.named_errors():
        table = pq.read_table(f"{store.bucket}/{row['key']}", filesystem=store.filesystem)
    series = Series(
        times=table["time"].cast(pa.int64()).to_numpy(),
        segments=table["segment"].to_numpy(),
        values=np.stack([table[name].to_numpy() for name in plan.columns], axis=1),
    )
    windows = cut(series, plan)
    whole = examples(series, windows, plan, scaling, table["cell"][0].as_py())
    written: list[dict[str, Any]] = []
    for split, is_in in split_of(series.times[windows.targets], bounds).items():
        rows = whole.filter(pa.array(is_in))
        for start in range(0, len(rows), _ROWS_PER_PART):
            part = store.write_part(DATASET, rows.slice(start, _ROWS_PER_PART), split)
            written.append({"order": row["order"], "index": len(written), **asdict(part)})
    return written


if __name__ == "__main__":
    sys.exit(job_main(prepare, PrepareConfig))
