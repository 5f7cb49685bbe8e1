"""`python -m bench [stack|jobs|mnist|scoring|serving ...]`: benchmarks on a stack of their own; prints medians and spread."""

from __future__ import annotations

import argparse
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
from bench.serving.comparison import compare
from bench.serving.models import NAMES
from semr.errors import SemrError
from semr.settings import ENV_FILE_NAME, ENV_FILE_VARIABLE, get_settings
from semr.stack import control

BENCHMARKS = ("stack", "jobs", "mnist", "scoring", "serving")


def main() -> int:
    """Run what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which to run, of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each (default: 3)")
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
        if "serving" in names:
            compare(NAMES, clients=(1, 8, 32), rounds=options.runs, seconds=4.0, console=console)
    except SemrError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def own_stack() -> Iterator[None]:
    """A stack in a temporary folder, which the settings of this process then name."""
    with tempfile.TemporaryDirectory(prefix="semr-bench-") as parent:
        folder = Path(parent, ".semr")
        try:
            control.up(folder)
            os.environ[ENV_FILE_VARIABLE] = str(folder / ENV_FILE_NAME)
            get_settings.cache_clear()
            yield
        finally:
            control.down(folder)


if __name__ == "__main__":
    sys.exit(main())
