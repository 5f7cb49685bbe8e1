"""The whole feature step on Ray Data and a real object store: every split, to the last bit, as the slow reference makes it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import qoe_reference as reference

from semr.errors import InvalidInputError
from semr.storage import ObjectStore
from workflow_examples.qoe import data, prepare
from workflow_examples.qoe.features import WindowPlan, read_metadata
from workflow_examples.qoe.prepare import PrepareConfig
from workflow_examples.qoe.synthetic import Synthetic

# The load rises in the validation part: a scaling that knew of it would be another.
MADE = Synthetic(cells=4, reports=700, outage_probability=0.004, loss_probability=0.01, regime_at=520)
PLAN = WindowPlan(columns=("pdcpBytesDl", "throughput"), steps=4, horizon=2)
CHOSEN = ("c1/B2", "c1/N77", "c2/B2")


def reports_of(version: Any, store: ObjectStore) -> list[dict[str, Any]]:
    table = store.read(version, data.SPLIT)
    times = table["time"].cast(pa.int64()).to_pylist()
    return [{**row, "time": time} for row, time in zip(table.to_pylist(), times, strict=True)]


@pytest.mark.usefixtures("ray_data")
@pytest.mark.parametrize("rows_per_part", [data.ROWS_PER_PART, 1000])
def test_every_split_is_that_of_the_reference(store: ObjectStore, rows_per_part: int) -> None:
    """Of reports in one part, which a single task reads, and in several, which are brought together by cell."""
    raw = store.write_dataset(
        data.DATASET, {data.SPLIT: MADE.batches()}, source="synthetic", rows_per_part=rows_per_part
    )
    assert (len(raw.parts) == 1) == (rows_per_part == data.ROWS_PER_PART)
    made = prepare.run(store, raw, PrepareConfig(raw.version, CHOSEN, PLAN))

    reports = reports_of(raw, store)
    first, last = min(each["time"] for each in reports), max(each["time"] for each in reports)
    bounds = [first + round((last - first) * share) for share in (PLAN.train, PLAN.train + PLAN.validation)]
    cells = {cell: reference.rates([each for each in reports if each["cell"] == cell], PLAN.columns) for cell in CHOSEN}
    scaling = reference.scaling(cells, bounds[0], len(PLAN.columns))
    plan, scaled_by = read_metadata(made.metadata)
    assert (plan.columns, plan.steps, plan.horizon) == (PLAN.columns, PLAN.steps, PLAN.horizon)
    assert scaled_by == scaling

    wanted: dict[str, list[tuple[str, int, list[float], list[float]]]] = {split: [] for split in prepare.SPLITS}
    for cell, rows in cells.items():
        for each in reference.examples(cell, rows, PLAN, scaling):
            split = prepare.SPLITS[sum(each.time >= bound for bound in bounds)]
            window = [float(value) for row in each.window for value in row]
            wanted[split].append((cell, each.time, window, [float(value) for value in each.target]))
    for split, expected in wanted.items():
        table = store.read(made, split)
        times = table["time"].cast(pa.int64()).to_pylist()
        found = list(
            zip(table["cell"].to_pylist(), times, table["window"].to_pylist(), table["target"].to_pylist(), strict=True)
        )
        assert len(expected) > 100
        assert found == expected


@pytest.mark.usefixtures("ray_data")
def test_a_cell_that_is_not_there_is_named(store: ObjectStore) -> None:
    raw = store.write_dataset(data.DATASET, {data.SPLIT: MADE.batches()}, source="synthetic")
    with pytest.raises(InvalidInputError, match="no reports of c9/B2 in synthetic"):
        prepare.run(store, raw, PrepareConfig(raw.version, ("c1/B2", "c9/B2"), PLAN))
