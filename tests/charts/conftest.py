"""A helm and copies of the charts for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chart_tools import Helm, copy_charts, find_helm
from cluster_stand_in import StandIn


@pytest.fixture(scope="session")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The charts in a temporary folder, with stand-ins for their dependencies."""
    return copy_charts(tmp_path_factory.mktemp("charts") / "helm_charts")


@pytest.fixture(scope="session")
def helm(charts: Path) -> Helm:
    """The real helm; without one, and no way to get one, the tests of the charts are skipped and say so."""
    program, reason = find_helm()
    if not program:
        pytest.skip(f"no helm, so no chart is tested: {reason}")
    return Helm(program, charts)


@pytest.fixture
def cluster() -> Iterator[StandIn]:
    """A cluster with nothing in it."""
    made = StandIn()
    yield made
    made.server.shutdown()
