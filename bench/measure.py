"""Repeated measurements, and the table that shows them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.table import Table

Given = ParamSpec("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Measurement:
    """Several runs of one thing, in seconds or what `unit` says; `goal` in the same unit where there is one."""

    name: str
    values: Sequence[float]
    goal: float | None = None
    unit: str = "s"

    @property
    def median(self) -> float:
        """Median in `unit`."""
        return statistics.median(self.values)


@dataclass
class Times:
    """Seconds of named pieces of work over several runs; names in the order in which they came first."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, name: str, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Do it, and note how long it took."""
        started = time.perf_counter()
        result = work(*args, **kwargs)
        self.add(name, time.perf_counter() - started)
        return result

    def add(self, name: str, seconds: float) -> None:
        """Note what took so long."""
        self.seconds.setdefault(name, []).append(seconds)


def show(title: str, measurements: Sequence[Measurement], console: Console) -> None:
    """Print one row a measurement: median, spread (least to most), number of runs, goal."""
    table = Table("what", "median", "least – most", "runs", "goal", title=title, title_justify="left", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in measurements:
        table.add_row(
            each.name,
            _shown(each.median, each.unit),
            f"{_shown(min(each.values), each.unit)} – {_shown(max(each.values), each.unit)}",
            str(len(each.values)),
            f"{each.goal:g} {each.unit}" if each.goal is not None else "",
        )
    console.print(table)
    console.print()


def _shown(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:,.0f} {unit}"
    if value >= 0.1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.1f} µs"
