"""Rates, windows and scaling of the QoE example: equal, to the last bit, to a slow reference implementation."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import qoe_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from semr.errors import InvalidInputError
from workflow_examples.qoe.features import (
    Series,
    Sums,
    WindowPlan,
    clean,
    cut,
    examples,
    read_metadata,
    scaling_of,
    schema_of,
    split_bounds,
    split_of,
)
from workflow_examples.qoe.reports import MEASURES, SCHEMA
from workflow_examples.qoe.synthetic import Synthetic

PERIOD = 10  # milliseconds
STEP = PERIOD * 1000  # microseconds
PLAN = WindowPlan(steps=3)


def table(reports: list[dict[str, Any]]) -> pa.Table:
    """One cell's reports in the order of the list."""
    columns = {
        "cell": pa.array(["c"] * len(reports), pa.string()),
        "time": pa.array([each["time"] for each in reports], pa.int64()).cast(pa.timestamp("us")),
        "period": pa.array([each["period"] for each in reports], pa.int32()),
        **{name: pa.array([each[name] for each in reports], pa.float64()) for name in MEASURES},
    }
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def report(time: int, down: float, up: float = 0.0) -> dict[str, Any]:
    return {
        "time": time, "period": PERIOD, "pdcpBytesDl": down, "pdcpBytesUl": up, "throughput": down / 3, "availPrbDl": 1.0,
        "availPrbUl": 2.0,
    }  # fmt: skip


amounts = st.floats(0, 1e9, allow_nan=False)
# Around the bounds of half a period and one and a half, within which a report follows the one before.
jitters = st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1, 4999, 5000, 5001, -5000])


@st.composite
def some_reports(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Runs of reports, some just long enough for a window, with gaps between them; jitter, duplicates, any order."""
    times: list[int] = []
    begin = 0
    for length, gap in draw(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 3)), max_size=4)):
        times += range(begin, begin + length * STEP, STEP)
        begin += (length + gap) * STEP
    if draw(st.booleans()):
        times = [max(0, time + draw(jitters)) for time in times]
    if times and draw(st.booleans()):
        times = draw(st.permutations([*times, *draw(st.lists(st.sampled_from(times), max_size=5))]))
    measured = draw(st.lists(st.tuples(amounts, amounts), min_size=len(times), max_size=len(times)))
    return [report(time, down, up) for time, (down, up) in zip(times, measured, strict=True)]


plans = st.builds(
    WindowPlan,
    columns=st.sampled_from([("pdcpBytesDl", "pdcpBytesUl"), ("throughput",), ("pdcpBytesUl", "throughput")]),
    steps=st.integers(1, 5),
    horizon=st.integers(1, 3),
)


def check_equal(cells: dict[str, list[dict[str, Any]]], plan: WindowPlan, training_ends: int) -> int:
    """Both implementations on the same reports; returns the number of examples."""
    series = {cell: clean(table(reports), plan.columns) for cell, reports in cells.items()}
    slow = {cell: reference.rates(reports, plan.columns) for cell, reports in cells.items()}
    for cell, rows in slow.items():
        assert series[cell].times.tolist() == [row.time for row in rows]
        assert series[cell].values.tolist() == [row.values for row in rows]
    sums = [Sums.of_training(each, training_ends) for each in series.values()]
    if not sum(each.count for each in sums):
        with pytest.raises(InvalidInputError, match="nothing to learn"):
            scaling_of(sums, plan.columns)
        return 0
    scaling = scaling_of(sums, plan.columns)
    assert scaling == reference.scaling(slow, training_ends, len(plan.columns))
    count = 0
    for cell, rows in slow.items():
        found = examples(series[cell], cut(series[cell], plan), plan, scaling, cell)
        wanted = reference.examples(cell, rows, plan, scaling)
        assert found["time"].cast(pa.int64()).to_pylist() == [each.time for each in wanted]
        assert found["window"].to_pylist() == [[float(v) for row in each.window for v in row] for each in wanted]
        assert found["target"].to_pylist() == [[float(v) for v in each.target] for each in wanted]
        count += len(wanted)
    return count


@settings(deadline=None, max_examples=150)
@given(st.lists(some_reports(), min_size=1, max_size=3), plans, st.integers(0, 20).map(lambda period: period * STEP))
def test_equal_to_the_reference_whatever_comes(
    cells: list[list[dict[str, Any]]], plan: WindowPlan, training_ends: int
) -> None:
    check_equal({f"c{index}": reports for index, reports in enumerate(cells)}, plan, training_ends)


def test_the_sum_of_a_part_is_exact() -> None:
    """A value far below the precision of the largest decides how a tie is rounded: a pair of doubles does not keep it."""
    values = np.array([[1.0], [2.0**-53], [1e-200]])
    sums = [Sums.of(values[:2]), Sums.of(values[2:]), Sums.of(values)]
    assert [math.fsum(each.total[0]) for each in sums] == [1.0, 1e-200, 1 + 2.0**-52]
    assert scaling_of(sums[:2], ("throughput",)) == scaling_of(sums[2:], ("throughput",))
    with_more = [Sums.of(values), Sums.of(np.array([[2.0]]))]
    assert scaling_of(with_more, ("throughput",)).mean == (math.fsum([*values.flat, 2.0]) / 4,)
    minus_one = Sums.of(-values[:1])
    assert scaling_of([Sums.of(values), minus_one], ("throughput",)).mean == (math.fsum([2.0**-53, 1e-200]) / 4,)


def test_equal_to_the_reference_on_made_up_reports() -> None:
    """With outages, losses, resets and both kinds of measures."""
    made = Synthetic(cells=3, reports=1500, outage_probability=0.005, loss_probability=0.01)
    rows = pa.Table.from_batches(list(made.batches())).to_pylist()
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        row["time"] = int((row["time"] - datetime(1970, 1, 1)).total_seconds() * 1_000_000)
        cells.setdefault(row["cell"], []).append(row)
    ends, _ = split_bounds(rows[0]["time"], rows[-1]["time"], WindowPlan())
    assert check_equal(cells, WindowPlan(columns=("pdcpBytesDl", "throughput"), horizon=2), ends) > 3000


@settings(deadline=None)
@given(some_reports(), st.randoms(use_true_random=False))
def test_the_order_of_reports_does_not_matter(reports: list[dict[str, Any]], random: Any) -> None:
    unique = list({each["time"]: each for each in reports}.values())
    shuffled = unique.copy()
    random.shuffle(shuffled)
    one, other = clean(table(unique), PLAN.columns), clean(table(shuffled), PLAN.columns)
    assert one.times.tolist() == other.times.tolist()
    assert one.values.tolist() == other.values.tolist()


def test_of_two_reports_for_a_time_the_first_counts() -> None:
    series = clean(table([report(0, 1), report(STEP, 3), report(STEP, 9), report(0, 7)]), ("pdcpBytesDl",))
    assert series.values.tolist() == [[2.0]]


def test_a_reset_counter_gives_what_it_counted_since() -> None:
    down = [5, 8, 2, 4]
    series = clean(table([report(index * STEP, each) for index, each in enumerate(down)]), ("pdcpBytesDl",))
    assert series.values.ravel().tolist() == [3, 2, 2]


@pytest.mark.parametrize("count", [0, 1])
def test_no_report_and_one_report_give_no_row(count: int) -> None:
    series = clean(table([report(0, 1.0)] * count), PLAN.columns)
    assert len(series.times) == len(cut(series, PLAN).starts) == 0


def test_no_window_crosses_a_gap() -> None:
    reports = [report(index * STEP, index) for index in range(20) if index != 9]
    series = clean(table(reports), PLAN.columns)
    windows = cut(series, PLAN)
    for start, target in zip(windows.starts, windows.targets, strict=True):
        assert np.diff(series.times[start : target + 1]).tolist() == [STEP] * PLAN.steps
    # 8 and 9 rates in the two segments, each with 3 steps and a target.
    assert len(windows.starts) == 5 + 6


def test_splits_are_in_the_order_of_time() -> None:
    targets = np.arange(0, 1000, 10)
    splits = split_of(targets, split_bounds(0, 1000, WindowPlan(train=0.5, validation=0.2)))
    assert {name: int(chosen.sum()) for name, chosen in splits.items()} == {
        "train": 50, "validation": 20, "holdout": 30,
    }  # fmt: skip
    assert targets[splits["train"]].max() < targets[splits["validation"]].min() < targets[splits["holdout"]].min()


def test_sums_do_not_depend_on_how_rows_are_divided() -> None:
    values = np.random.default_rng(0).exponential(1e6, (5000, 2)) ** 2
    whole = scaling_of([Sums.of(values)], PLAN.columns)
    for parts in (2, 7, 100):
        assert scaling_of([Sums.of(each) for each in np.array_split(values, parts)], PLAN.columns) == whole


def test_a_constant_column_is_moved_and_not_scaled() -> None:
    """Sums of 2.56 are not quite multiples of it."""
    counter = np.cumsum(np.full(100, 2.56))
    values = np.diff(counter)[:, None]
    assert values.std() > 0
    assert scaling_of([Sums.of(values)], ("pdcpBytesDl",)).std == (1.0,)


def test_plan_and_scaling_travel_with_the_dataset() -> None:
    scaling = scaling_of([Sums.of(np.random.default_rng(0).random((9, 2)))], PLAN.columns)
    metadata = {key.decode(): value.decode() for key, value in schema_of(PLAN, scaling).metadata.items()}
    assert read_metadata(metadata) == (PLAN, scaling)
    series = Series(np.arange(3), np.zeros(3, np.int64), np.random.default_rng(1).random((3, 2)))
    np.testing.assert_allclose(scaling.unscale(scaling.scale(series.values)), series.values, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [{"columns": ("bytes",)}, {"columns": ()}, {"steps": 0}, {"horizon": 0}, {"train": 0.9, "validation": 0.2}],
)
def test_plans_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        WindowPlan(**wrong)
