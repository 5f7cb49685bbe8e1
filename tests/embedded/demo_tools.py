"""Starts `python -m workflow_examples.mnist.demo` as `make demo` does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from semr.settings import ENV_PREFIX

ROOT = Path(__file__).parents[2]


def start_demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo in the folder above the state folder, in a process group of its own as a terminal makes one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "workflow_examples.mnist.demo", *arguments],
        cwd=folder.parent,
        env={**environment, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
