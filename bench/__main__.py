"""`python -m bench [stack|jobs|mnist|scoring|serving|qoe ...]`: benchmarks on stacks of their own; prints medians."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console

from bench import cold_start, job_latency, scoring, workflow_steps
from bench.measure import show
from bench.qoe import comparison as qoe_comparison
from bench.qoe import workflow as qoe_workflow
from bench.serving.comparison import compare
from bench.serving.models import NAMES
from semr.errors import SemrError
from semr.settings import ENV_FILE_NAME, ENV_FILE_VARIABLE, get_settings
from semr.stack import control
from workflow_examples.qoe.data import SYNTHETIC, export
from workflow_examples.qoe.synthetic import Synthetic

BENCHMARKS = ("stack", "jobs", "mnist", "scoring", "serving", "qoe")
# As many cells and times as the simulator's file has.
_AS_SIMULATED = Synthetic(cells=39, reports=1039)


def main() -> int:
    """Run what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which to run, of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each (default: 3)")
    parser.add_argument("--source", help="of qoe: file of cell measurement reports (default: made-up ones, as many)")
    parser.add_argument(
        "--scales", type=_scales, default=(1,), help="of qoe: how often the reports are taken, as 1,10,100 (default: 1)"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown or options.runs < 1:
        parser.error(f"no benchmark {unknown[0]!r}" if unknown else "--runs must be at least 1")
    names = options.names or BENCHMARKS
    console = Console()
    console.print(f"{psutil.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the first run\n", highlight=False)
    try:
        if "scoring" in names:
            show("Watching a model: cost of a request", scoring.measure(options.runs), console)
        if "stack" in names:
            show("Embedded stack", cold_start.measure(options.runs), console)
        if {"jobs", "mnist"} & set(names):
            with own_stack():
                if "jobs" in names:
                    show("Ray jobs", job_latency.measure(max(options.runs, 5)), console)
                if "mnist" in names:
                    show("MNIST workflow", workflow_steps.measure(options.runs), console)
        if "qoe" in names:
            with reports_of(options.source) as source:
                qoe_comparison.compare(source, options.scales, options.runs, console)
                with own_stack() as stack:
                    for scale, cells in itertools.product(options.scales, qoe_comparison.CHOICES):
                        title = f"QoE workflow, reports {scale} times, {', '.join(cells) or 'all cells'}"
                        show(title, qoe_workflow.measure(options.runs, source, scale, cells, stack), console)
        if "serving" in names:
            compare(NAMES, clients=(1, 8, 32), rounds=options.runs, seconds=4.0, console=console)
    except SemrError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _scales(text: str) -> tuple[int, ...]:
    scales = tuple(int(each) if each.isdecimal() else 0 for each in text.split(","))
    if min(scales) < 1:
        raise argparse.ArgumentTypeError(f"numbers of at least 1, separated by commas, not {text!r}")
    return scales


@contextmanager
def reports_of(source: str | None) -> Iterator[str]:
    """The file of cell measurement reports of that name, or one of made-up reports."""
    if source:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="semr-bench-") as parent:
        path = Path(parent, "reports.json")
        export(SYNTHETIC, _AS_SIMULATED, path)
        yield str(path)


@contextmanager
def own_stack() -> Iterator[Path]:
    """A stack in a temporary folder, which the settings of this process then name; yields its state folder."""
    with tempfile.TemporaryDirectory(prefix="semr-bench-") as parent:
        folder = Path(parent, ".semr")
        try:
            control.up(folder)
            os.environ[ENV_FILE_VARIABLE] = str(folder / ENV_FILE_NAME)
            get_settings.cache_clear()
            yield folder
        finally:
            control.down(folder)


if __name__ == "__main__":
    sys.exit(main())
