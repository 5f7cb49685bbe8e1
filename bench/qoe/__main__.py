"""`python -m bench.qoe --source PATH [--scales 1,10,100]`: load, feature step and training beside the pattern."""

from __future__ import annotations

import argparse
import os
import sys

from rich.console import Console

from bench.qoe.comparison import compare
from semr.errors import SemrError


def main() -> int:
    """Run what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.qoe", description=__doc__)
    parser.add_argument("--source", required=True, help="file of cell measurement reports")
    parser.add_argument("--scales", default="1,10,100", help="how often the reports are repeated (default: 1,10,100)")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each (default: 3)")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    console = Console()
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the first run\n", highlight=False)
    try:
        compare(options.source, tuple(int(each) for each in options.scales.split(",")), options.runs, console)
    except SemrError as error:
        print(f"bench.qoe: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
