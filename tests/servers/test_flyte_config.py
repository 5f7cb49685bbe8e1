"""What the chart tells Flyte, read by Flyte's own modules, and its object store as Flyte's client sees it.

Flyte itself cannot be built from modules; of its configuration, the sections of flyteadmin are not read here, but where
there is a binary of Flyte (tests/cluster/test_flyte_backend.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from chart_tools import CASES, Helm, Object, Pod, Rendered, values_given_to
from data_plane import DataPlane, Start
from pod_runner import PodError

ADMIN_SECTIONS = {"flyteadmin", "namespace_mapping", "task_resources"}
CONFIG = "/etc/flyte/config.d/200-semr.yaml"
PROFILES = [profile for chart, profile in CASES if chart == "SEMR"]


def flyte_config(rendered: Rendered) -> Object:
    """The chart's file and, from the values of Flyte's chart, the list of plug-ins, which that chart passes on as it is."""
    config: Object = yaml.safe_load(rendered.get("ConfigMap", "semr-flyte-config")["data"]["200-semr.yaml"])
    config["tasks"] = values_given_to(rendered, "flyte-binary")["enabled_plugins"]["tasks"]
    assert config.keys() >= ADMIN_SECTIONS
    return {name: section for name, section in config.items() if name not in ADMIN_SECTIONS}


def flyte_pod(rendered: Rendered) -> Pod:
    """A pod with what the values of Flyte's chart give to Flyte's."""
    deployment = values_given_to(rendered, "flyte-binary")["deployment"]
    config = {"name": "config", "configMap": {"name": "semr-flyte-config"}}
    container = {
        "name": "flyte",
        "env": deployment["extraEnvVars"],
        "volumeMounts": [*deployment["extraVolumeMounts"], {"name": "config", "mountPath": str(Path(CONFIG).parent)}],
    }
    spec = {
        "securityContext": deployment["podSecurityContext"],
        "containers": [container],
        "volumes": [*deployment["extraVolumes"], config],
    }
    return Pod("Deployment/semr-flyte-binary", {}, {}, spec)


def validate(plane: DataPlane, config: Object) -> str:
    command = ["sh", "-c", 'printf "%s" "$0" >/tmp/flyte.yaml; flyte-check validate --strict --file /tmp/flyte.yaml']
    pod = Pod(
        "Pod/validate", {}, {}, {"containers": [container_with_tmp()], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    )
    return plane.node.start(pod, command=[*command, yaml.safe_dump(config)]).wait(60)


def container_with_tmp() -> Object:
    return {
        "name": "flyte",
        "securityContext": {"runAsUser": 65534},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def test_flyte_knows_every_setting(helm: Helm, plane: DataPlane) -> None:
    with_flyte = set()
    for profile in PROFILES:
        rendered = helm.render("SEMR", profile)
        if "semr-flyte-config" in {each["metadata"]["name"] for each in rendered.of("ConfigMap")}:
            assert "Validated config file successfully" in validate(plane, flyte_config(rendered)), profile
            with_flyte.add(profile)
    assert with_flyte == {None, "everything-on-values", "ha-values", "values_example"}


def test_a_setting_that_flyte_does_not_know_is_found(helm: Helm, plane: DataPlane) -> None:
    config = json.loads(json.dumps(flyte_config(helm.render("SEMR"))).replace("serviceType", "serviceKind"))
    with pytest.raises(PodError, match="invalid keys"):
        validate(plane, config)


def test_flyte_has_the_password_of_its_database(plane: DataPlane) -> None:
    config = yaml.safe_load(plane.node.data("ConfigMap", "semr-flyte-config")["200-semr.yaml"])["database"]["postgres"]
    password = plane.node.start(flyte_pod(plane.node.rendered), command=["cat", config["passwordPath"]]).wait()
    assert config["options"] == "sslmode=disable"
    assert plane.sql(config["username"], password, config["dbname"], "SELECT current_user") == config["username"]


def test_flyte_keeps_objects_with_its_own_key(plane: DataPlane) -> None:
    said = plane.node.start(flyte_pod(plane.node.rendered), command=["flyte-check", "store", CONFIG]).wait()
    (address,) = [line for line in said.splitlines() if line.startswith("http")]
    assert address.startswith("http://semr-minio.ml.svc.cluster.local:9000/semr-flyte/check/one?")


@pytest.fixture(scope="module")
def opened(helm: Helm, start: Start) -> Iterator[DataPlane]:
    """With MinIO behind a NodePort."""
    with start(helm.render("SEMR", None, "gateway.type=nodePort", "general.host=lab.example.org")) as made:
        made.set_up()
        yield made


def test_pyflyte_can_upload_from_outside(opened: DataPlane) -> None:
    """The address that Flyte signs is the one under which the object store is reached from outside."""
    said = opened.node.start(flyte_pod(opened.node.rendered), command=["flyte-check", "store", CONFIG]).wait()
    (address,) = [urlsplit(line) for line in said.splitlines() if line.startswith("http")]
    assert address.netloc == "lab.example.org:30085"
    here = f"{opened.node.url(9000)}{address.path}?{address.query}"
    answer = httpx.put(here, content=b"code", headers={"Host": address.netloc}, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert opened.s3_of("flyte").get_object(Bucket="semr-flyte", Key="check/one")["Body"].read() == b"code"
    forged = httpx.put(
        here.replace("check/one", "check/two"), content=b"code", headers={"Host": address.netloc}, trust_env=False
    )
    assert forged.status_code == 403
