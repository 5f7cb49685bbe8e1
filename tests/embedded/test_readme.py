"""Everything that a README has a reader type, typed: in its order, on a stack of its own, in a copy of the tree."""

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


def tour_of(readme: str) -> list[str]:
    """The blocks of commands of a README."""
    # What follows that heading needs a cluster.
    text = (REPOSITORY / readme).read_text().partition("\n## On Kubernetes\n")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    kept = ("\n".join(line for line in block.splitlines() if not line.startswith(_NOT_HERE)) for block in blocks)
    return [block for block in kept if block.strip()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("readme", "said"),
    [
        ("README.md", ("answered by mnist, version 1", '"versions":["1"]', '"label":')),
        (
            "workflow_examples/qoe/README.md",
            (
                "is champion: better than",
                " requests, 0 failed, accuracy ",
                "of 6 cells",
                '"model_name":"qoe","model_version":',
                '"examples":1,',
            ),
        ),
    ],
)
def test_the_tour_works_as_written(tmp_path: Path, readme: str, said: tuple[str, ...]) -> None:
    shutil.copytree(REPOSITORY / "workflow_examples", tmp_path / "workflow_examples")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SEMR_", "RAY_", "MLFLOW_"))
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    blocks = tour_of(readme)
    assert any("pyflyte run" in block for block in blocks)
    printed = []
    try:
        for block in blocks:
            done = subprocess.run(
                ["bash", "-euxo", "pipefail", "-c", block],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            printed.append(done.stdout)
    finally:
        control.down(tmp_path / ".semr")
    for expected in said:
        assert any(expected in output for output in printed), (expected, printed)
