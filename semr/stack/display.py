"""How `semr up` and `semr status` look on a terminal, and without one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from semr.stack.control import Progress
from semr.stack.status import ServiceState, ServiceStatus, StackStatus

# Columns of a file or a pipe; a terminal that is narrower cuts long rows.
_WHOLE_ROWS = 200
_STYLES = {
    ServiceState.HEALTHY: "green",
    ServiceState.STARTING: "yellow",
    ServiceState.UNHEALTHY: "red",
    ServiceState.BACKING_OFF: "red",
    ServiceState.FAILED: "bold red",
    ServiceState.STOPPED: "dim",
}


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[Progress]:
    """A function that shows each status given to it: a live table on a terminal, else one line for each change of state."""
    console = console or Console()
    began = time.monotonic()
    if console.is_terminal:
        spinner = Spinner("dots")
        with Live(console=console, refresh_per_second=8) as live:
            yield lambda status: live.update(_progress_table(status, spinner), refresh=False)
    else:
        seen: dict[str, ServiceState] = {}

        def print_changes(status: StackStatus) -> None:
            for service in status.services:
                if seen.get(service.name) is not service.state:
                    seen[service.name] = service.state
                    console.print(_line(service, time.monotonic() - began), soft_wrap=True, highlight=False)

        yield print_changes


def print_status(status: StackStatus, console: Console | None = None) -> None:
    """Print one row for each service."""
    console = console or Console()
    if not console.is_terminal:
        console.width = _WHOLE_ROWS
    table = Table(box=None)
    for heading in ("service", "state", "pid", "URL", "restarts", "uptime", "detail"):
        table.add_column(heading, no_wrap=True)
    for service in status.services:
        table.add_row(
            service.name,
            f"[{_STYLES[service.state]}]{service.state.value}[/]",
            str(service.pid or "-"),
            service.url,
            str(service.restarts),
            _duration(service.started) if service.pid else "-",
            escape(service.detail),
        )
    if status.services:
        console.print(table)
    else:
        console.print("The stack is not up: start it with `semr up`.")


def _progress_table(status: StackStatus, spinner: Spinner) -> Table:
    table = Table.grid(padding=(0, 2))
    for service in status.services:
        mark = spinner if service.state is ServiceState.STARTING else _mark(service.state)
        text = service.url if service.state is ServiceState.HEALTHY else service.detail
        table.add_row(mark, service.name, f"[{_STYLES[service.state]}]{service.state.value}[/]", escape(text))
    return table


def _mark(state: ServiceState) -> str:
    return "[green]✓[/]" if state is ServiceState.HEALTHY else "[red]✗[/]"


def _line(service: ServiceStatus, elapsed_s: float) -> str:
    text = escape(service.url if service.state is ServiceState.HEALTHY else service.detail)
    return f"{elapsed_s:5.1f} s  {service.name}: {service.state.value} {text}".rstrip()


def _duration(since: float | None) -> str:
    if since is None:
        return "-"
    seconds = max(0, int(time.time() - since))
    days, seconds = divmod(seconds, 86400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
