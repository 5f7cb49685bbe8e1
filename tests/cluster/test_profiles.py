"""Every profile is installed, becomes ready on simulated nodes, answers `helm test`, and leaves what the README says."""

from __future__ import annotations

import pytest
from chart_tools import CASES, PROFILES
from cluster_tools import EXTERNAL_SECRETS, NAMESPACED_KINDS, PREPARED_SECRETS, Cluster, profile_arguments

#: Profiles with Ray's state in Redis.
FAULT_TOLERANT = ("everything-on-values", "external-services-values", "ha-values")
#: Kinds that the KubeRay operator makes.
_OF_RAY = ("Pod", "Service", "Job", "Role", "RoleBinding", "ServiceAccount")
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

    done = cluster.helm_run("uninstall", release, namespace=namespace)
    assert done.returncode == 0, done.stderr
    fault_tolerant = profile in FAULT_TOLERANT
    # For Redis the operator waits a minute before it removes what belongs to Ray's clusters: one profile is enough for that.
    patient = not fault_tolerant or profile == FAULT_TOLERANT[0]

    def left() -> set[str]:
        names = _names(cluster, namespace) - before
        ray = (
            "RayCluster/",
            "RayService/",
            *(f"{kind}/semr-{part}" for kind in _OF_RAY for part in ("ray", "serving")),
        )
        return names if patient else {name for name in names if not name.startswith(ray)}

    kept = {name for name in left() if _is_kept(name)}
    cluster.wait(lambda: left() - kept, 150)
    if chart == "SEMR_inference":
        assert not kept
    # As the README says it.
    selector = f"app.kubernetes.io/instance={release}"
    cluster.kubectl("delete", "persistentvolumeclaim,secret", f"--namespace={namespace}", f"--selector={selector}")
    cluster.wait(left)


def _is_kept(name: str) -> bool:
    return name.startswith(("PersistentVolumeClaim/", "Secret/")) and "helm.release" not in name


def _names(cluster: Cluster, namespace: str) -> set[str]:
    prepared = {f"Secret/{name}" for name in PREPARED_SECRETS}
    everywhere = {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}
    found = {f"{each['kind']}/{each['metadata']['name']}" for each in cluster.all(NAMESPACED_KINDS, namespace)}
    return found - prepared - everywhere
