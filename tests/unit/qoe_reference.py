"""The feature step of the QoE example once more: slow, obvious, in plain Python, report by report and window by window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from workflow_examples.qoe.features import Scaling, WindowPlan
from workflow_examples.qoe.reports import COUNTERS


@dataclass
class Row:
    time: int
    segment: int
    values: list[float]


@dataclass
class Example:
    cell: str
    time: int
    window: list[list[np.float32]]
    target: list[np.float32]


def rates(reports: list[dict[str, Any]], columns: tuple[str, ...]) -> list[Row]:
    """Rates of one cell; `reports` have time (µs), period (ms) and the measures."""
    by_time: dict[int, dict[str, Any]] = {}
    for report in reports:
        by_time.setdefault(report["time"], report)
    rows: list[Row] = []
    segment = 0
    before: dict[str, Any] | None = None
    for time in sorted(by_time):
        report = by_time[time]
        if before is not None:
            periods = (time - before["time"]) / (report["period"] * 1000)
            if 0.5 <= periods <= 1.5:
                rows.append(Row(time, segment, [_rate(name, before, report) for name in columns]))
            else:
                segment += 1
        before = report
    return rows


def _rate(name: str, before: dict[str, Any], now: dict[str, Any]) -> float:
    if name not in COUNTERS:
        return float(now[name])
    grown = now[name] - before[name]
    return float(now[name] if grown < 0 else grown)


def scaling(cells: dict[str, list[Row]], training_ends: int, columns: int) -> Scaling:
    means, deviations = [], []
    for column in range(columns):
        values = [row.values[column] for rows in cells.values() for row in rows if row.time < training_ends]
        mean = math.fsum(values) / len(values)
        square = math.fsum(value * value for value in values) / len(values)
        deviation = math.sqrt(max(0.0, square - mean * mean))
        means.append(mean)
        deviations.append(deviation if deviation > 1e-6 * max(1.0, abs(mean)) else 1.0)
    return Scaling(tuple(means), tuple(deviations))


def examples(cell: str, rows: list[Row], plan: WindowPlan, scaled_by: Scaling) -> list[Example]:
    found = []
    for start in range(len(rows)):
        seen = rows[start : start + plan.steps]
        at = start + plan.steps - 1 + plan.horizon
        if at >= len(rows) or any(row.segment != rows[at].segment for row in seen):
            continue
        target = rows[at]
        found.append(Example(cell, target.time, [_scaled(row, scaled_by) for row in seen], _scaled(target, scaled_by)))
    return found


def _scaled(row: Row, by: Scaling) -> list[np.float32]:
    return [np.float32((value - mean) / std) for value, mean, std in zip(row.values, by.mean, by.std, strict=True)]
