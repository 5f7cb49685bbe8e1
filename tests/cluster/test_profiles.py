"""Every profile is installed, becomes ready on simulated nodes, answers `helm test`, and leaves what the README says."""

from __future__ import annotations

import pytest
from chart_tools import CASES, PROFILES
from cluster_tools import EXTERNAL_SECRETS, NAMESPACED_KINDS, PREPARED_SECRETS, Cluster, profile_arguments

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize(("chart", "profile"), CASES)
def test_install_test_uninstall_on_simulated_nodes(
    cluster: Cluster, namespace: str, chart: str, profile: str | None
) -> None:
    release = PROFILES[chart][0]
    if profile == "external-services-values":
        cluster.prepare(namespace, EXTERNAL_SECRETS)
    before = _names(cluster, namespace)
    cluster.install(chart, release, namespace, *profile_arguments(chart, profile))
    cluster.wait_for_ready(namespace, release)

    done = cluster.helm_run("test", release, namespace=namespace, arguments=("--timeout=60s",))
    assert done.returncode == 0, done.stdout + done.stderr

    done = cluster.helm_run("uninstall", release, namespace=namespace, arguments=("--wait", "--timeout=60s"))
    assert done.returncode == 0, done.stderr
    kept = {name for name in _names(cluster, namespace) - before if _is_kept(name)}
    cluster.wait(lambda: _names(cluster, namespace) - before - kept)
    if chart == "SEMR_inference":
        assert not kept
    # As the README says it.
    selector = f"app.kubernetes.io/instance={release}"
    cluster.kubectl("delete", "persistentvolumeclaim,secret", f"--namespace={namespace}", f"--selector={selector}")
    cluster.wait(lambda: _names(cluster, namespace) - before)


def _is_kept(name: str) -> bool:
    return name.startswith(("PersistentVolumeClaim/", "Secret/")) and "helm.release" not in name


def _names(cluster: Cluster, namespace: str) -> set[str]:
    prepared = {f"Secret/{name}" for name in PREPARED_SECRETS}
    everywhere = {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}
    found = {f"{each['kind']}/{each['metadata']['name']}" for each in cluster.all(NAMESPACED_KINDS, namespace)}
    return found - prepared - everywhere
