"""One cluster for the session: the one that KUBECONFIG names, else a test bed of this run's own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tools of the other levels.
for _level in ("charts", "unit", "embedded", "servers"):
    sys.path.append(str(Path(__file__).parents[1] / _level))

from bed import Bed, running_bed, start_kuberay  # noqa: E402
from build_programs import BuildError, for_tests  # noqa: E402
from chart_tools import Helm, copy_charts, find_helm  # noqa: E402
from cluster_network import ClusterNetwork  # noqa: E402
from cluster_tools import Cluster, existing_kubeconfig, priority_classes  # noqa: E402


@pytest.fixture(scope="session")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The charts in a temporary folder, with stand-ins for their dependencies."""
    return copy_charts(tmp_path_factory.mktemp("charts") / "helm_charts")


@pytest.fixture(scope="session")
def helm(charts: Path) -> Helm:
    program, reason = find_helm()
    if not program:
        pytest.skip(f"no helm: {reason}")
    return Helm(program, charts)


@pytest.fixture(scope="session")
def network() -> Iterator[ClusterNetwork]:
    """What stands for the cluster's network."""
    made = ClusterNetwork()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def bed(network: ClusterNetwork) -> Iterator[Bed]:
    """A control plane with simulated nodes and the KubeRay operator."""
    try:
        programs = for_tests()
    except BuildError as error:
        pytest.skip(f"no Kubernetes, so nothing is tested on one: {error}")
    with running_bed(programs) as made:
        start_kuberay(made, network.url)
        yield made
        made.check()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, helm: Helm) -> Cluster:
    """The cluster of this session."""
    existing = existing_kubeconfig()
    if existing is None:
        bed: Bed = request.getfixturevalue("bed")
        cluster = Cluster(str(bed.programs.program("kubectl")), bed.kubeconfig, helm, simulated=True)
        cluster.apply(*priority_classes())
        return cluster
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("KUBECONFIG names a cluster, but there is no kubectl on PATH")
    nodes = Cluster(kubectl, existing, helm, simulated=False).kubectl("get", "nodes", "--output=name", check=False)
    simulated = all("/simulated-" in name for name in nodes.stdout.split()) and bool(nodes.stdout)
    cluster = Cluster(kubectl, existing, helm, simulated)
    for name in ("rayservices.ray.io", "servicemonitors.monitoring.coreos.com", "httproutes.gateway.networking.k8s.io"):
        found = cluster.kubectl("get", "customresourcedefinition", name, check=False)
        if found.returncode != 0:
            pytest.skip(f"the cluster of KUBECONFIG lacks {name}, or does not answer: {found.stderr.strip()}")
    cluster.apply(*priority_classes())
    return cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace for one test."""
    with cluster.namespace() as name:
        yield name
