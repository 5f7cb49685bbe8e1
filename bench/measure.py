"""Repeated measurements, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Measurement:
    """Seconds of several runs of one thing; `goal` in seconds where there is one."""

    name: str
    seconds: Sequence[float]
    goal: float | None = None

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)


def show(title: str, measurements: Sequence[Measurement], console: Console) -> None:
    """Print one row a measurement: median, spread (least to most), number of runs, goal."""
    table = Table("what", "median", "least – most", "runs", "goal", title=title, title_justify="left", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in measurements:
        table.add_row(
            each.name,
            _shown(each.median),
            f"{_shown(min(each.seconds))} – {_shown(max(each.seconds))}",
            str(len(each.seconds)),
            f"{each.goal:g} s" if each.goal is not None else "",
        )
    console.print(table)
    console.print()


def _shown(seconds: float) -> str:
    if seconds >= 0.1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"
