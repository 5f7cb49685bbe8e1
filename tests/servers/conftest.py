"""The chart's own servers, run from its manifests: PostgreSQL, MinIO and what sets them up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Tools of the other levels.
for _level in ("charts", "cluster"):
    sys.path.append(str(Path(__file__).parents[1] / _level))

from build_programs import BuildError, for_tests  # noqa: E402
from chart_tools import Helm, Rendered, copy_charts, find_helm  # noqa: E402
from data_plane import DataPlane, Start, server_programs  # noqa: E402
from pod_runner import running_node, why_not  # noqa: E402


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    program, reason = find_helm()
    if not program:
        pytest.skip(f"no helm: {reason}")
    if reason := why_not():
        pytest.skip(f"pods cannot be run as processes: {reason}")
    return Helm(program, copy_charts(tmp_path_factory.mktemp("charts") / "helm_charts"))


@pytest.fixture(scope="session")
def path() -> list[Path]:
    """Folders of the programs that images would bring."""
    try:
        return server_programs(for_tests("mc", "minio", "flyte-check"))
    except (BuildError, FileNotFoundError) as error:
        pytest.skip(f"no servers: {error}")


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory, path: list[Path]) -> Start:
    """Makes a node for a rendered chart, with nothing running yet."""

    @contextmanager
    def made(rendered: Rendered) -> Iterator[DataPlane]:
        with running_node(rendered, tmp_path_factory.mktemp("node"), path) as node:
            yield DataPlane(node)

    return made


@pytest.fixture(scope="module")
def plane(helm: Helm, start: Start) -> Iterator[DataPlane]:
    """PostgreSQL and MinIO under the chart's defaults, set up."""
    with start(helm.render("SEMR")) as made:
        made.set_up()
        yield made
