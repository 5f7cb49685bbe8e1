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
            f"{each.median:.2f} s",
            f"{min(each.seconds):.2f} – {max(each.seconds):.2f} s",
            str(len(each.seconds)),
            f"{each.goal:g} s" if each.goal is not None else "",
        )
    console.print(table)
    console.print()
