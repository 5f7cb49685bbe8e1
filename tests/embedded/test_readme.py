"""Everything that the README's tour has a reader type, typed: in its order, on a stack of its own, in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from semr.stack import control

REPOSITORY = Path(__file__).parents[2]
# These set up the environment that the test runs in, or are the test run itself.
_NOT_HERE = ("make demo", "make test", ". .venv/bin/activate")


def commands_of_the_tour() -> list[str]:
    # What follows that heading needs a cluster.
    text = (REPOSITORY / "README.md").read_text().partition("\n## On Kubernetes\n")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(_NOT_HERE)]


@pytest.mark.slow
def test_the_tour_works_as_written(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "workflow_examples", tmp_path / "workflow_examples")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SEMR_", "RAY_", "MLFLOW_"))
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    commands = commands_of_the_tour()
    assert any("pyflyte run" in command for command in commands)
    printed = []
    try:
        for command in commands:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=420,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            printed.append(done.stdout)
    finally:
        control.down(tmp_path / ".semr")
    for expected in ("answered by mnist, version 1", '"versions":["1"]', '"label":'):
        assert any(expected in output for output in printed), (expected, printed)
