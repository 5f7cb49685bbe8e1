"""`python -m bench.serving --help`: the comparison of servers with other models, clients or times than `make bench` has."""

from __future__ import annotations

import argparse
import os

import psutil
from rich.console import Console

from bench.serving.comparison import compare
from bench.serving.models import NAMES


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving")
    parser.add_argument("--models", nargs="+", default=NAMES, choices=NAMES, help="which (default: all)")
    parser.add_argument(
        "--clients", nargs="+", type=int, default=[1, 8, 32], help="closed-loop clients (default: 1 8 32)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all servers (default: 3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load (default: 4)")
    parser.add_argument("--no-ray", action="store_true", help="without Ray Serve, whose idle clusters take half a core")
    options = parser.parse_args()
    console = Console(width=120)
    console.print(f"{psutil.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the first run", highlight=False)
    compare(
        options.models,
        options.clients,
        options.rounds,
        options.seconds,
        console,
        processes_only=options.no_ray,
    )


if __name__ == "__main__":
    main()
