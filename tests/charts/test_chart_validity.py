"""Helm's own lint, Kubernetes' schemas, and those of the custom resources that the charts use."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_tools import CASES, CHARTS, KUBE_VERSION, Helm, Object, own, values_of
from jsonschema import Draft7Validator

# From the first version that the charts' kubeVersion allows to the newest one that the schemas know.
KUBE_VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
# Go modules that carry the definitions. KubeRay's is a release older than the operator: the newest that is published as one.
MODULES = {
    "github.com/ray-project/kuberay/ray-operator@v1.6.2": "config/crd/bases",
    "github.com/prometheus-operator/prometheus-operator@v0.93.1": "example/prometheus-operator-crd",
    "sigs.k8s.io/gateway-api@v1.4.0": "config/crd/standard",
}
# A folder with definitions (YAML) that are looked at first, such as those of another release of an operator.
FOLDER_VARIABLE = "SEMR_TEST_CRDS"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads a bare `=` as a text, as Kubernetes does."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize(("chart", "profile"), CASES)
def test_lint(helm: Helm, chart: str, profile: str | None) -> None:
    values = [] if profile is None else ["--values", values_of(chart, profile)]
    done = helm.run("lint", "--strict", "--kube-version", KUBE_VERSION, helm.charts / chart, *values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def validate() -> Iterator[Any]:
    """kubernetes_validate.validate, which otherwise reads 3 MB of definitions for each object."""
    import kubernetes_validate
    from kubernetes_validate import utils

    read = utils.schema_contents
    utils.schema_contents = lru_cache(maxsize=None)(read)
    yield kubernetes_validate.validate
    utils.schema_contents = read


@pytest.mark.parametrize("version", KUBE_VERSIONS)
def test_kubernetes_takes_every_object(helm: Helm, validate: Any, version: str) -> None:
    seen = set()
    for chart, profile in CASES:
        for each in own(helm.render(chart, profile)).objects:
            text = json.dumps(each, sort_keys=True)
            if not _is_custom(each) and text not in seen:
                seen.add(text)
                validate(each, version, strict=True)
    assert len(seen) > 100


def test_kubernetes_schemas_refuse_what_is_wrong(helm: Helm, validate: Any) -> None:
    """The test above is able to fail."""
    import kubernetes_validate

    service = copy.deepcopy(helm.render("SEMR", None).get("Service", "semr-mlflow"))
    service["spec"]["portz"] = service["spec"].pop("ports")
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(service, KUBE_VERSIONS[-1], strict=True)


@pytest.fixture(scope="module")
def custom_schemas() -> dict[tuple[str, str], Any]:
    """JSON schemas of custom resources by (apiVersion, kind), from the definitions that the operators' modules carry."""
    given = os.environ.get(FOLDER_VARIABLE)
    folders = [Path(given)] if given else []
    go = shutil.which("go")
    if go is None and not folders:
        pytest.skip(
            "no go on PATH, which fetches the definitions: custom resources are not checked against their schemas"
        )
    if go is not None:
        for module, folder in MODULES.items():
            done = subprocess.run(
                [go, "mod", "download", "-json", module], capture_output=True, text=True, timeout=300, check=False
            )
            found = json.loads(done.stdout or "{}")
            if done.returncode != 0 or "Dir" not in found:
                pytest.skip(
                    f"{module} cannot be fetched, so custom resources are not checked: {found.get('Error', done.stderr)}"
                )
            folders.append(Path(found["Dir"]) / folder)
    schemas: dict[tuple[str, str], Any] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            for definition in yaml.load_all(path.read_text(), Loader=_Loader):
                if not isinstance(definition, dict) or definition.get("kind") != "CustomResourceDefinition":
                    continue
                spec = definition["spec"]
                for version in spec["versions"]:
                    key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                    schemas.setdefault(key, _strict(version["schema"]["openAPIV3Schema"]))
    return schemas


@pytest.mark.parametrize(("chart", "profile"), CASES)
def test_operators_take_every_custom_resource(
    helm: Helm, custom_schemas: dict[tuple[str, str], Any], chart: str, profile: str | None
) -> None:
    for each in own(helm.render(chart, profile)).objects:
        if _is_custom(each):
            schema = custom_schemas[each["apiVersion"], each["kind"]]
            problems = [
                f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
                for error in Draft7Validator(schema).iter_errors(each)
            ]
            assert not problems, (each["kind"], each["metadata"]["name"], problems)


def test_custom_schemas_refuse_what_is_wrong(helm: Helm, custom_schemas: dict[tuple[str, str], Any]) -> None:
    """The test above is able to fail: an unknown field deep in a pod template, a wrong type, a wrong word."""
    cluster = helm.render("SEMR", None).get("RayCluster", "semr-ray")
    schema = custom_schemas["ray.io/v1", "RayCluster"]
    for path, value in (
        (("spec", "headGroupSpec", "template", "spec", "nodeSelektor"), {}),
        (("spec", "enableInTreeAutoscaling"), "yes"),
        (("spec", "authOptions", "mode"), "password"),
    ):
        broken = copy.deepcopy(cluster)
        place: Any = broken
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
        assert list(Draft7Validator(schema).iter_errors(broken)), path


def test_charts_say_from_which_kubernetes_on(helm: Helm) -> None:
    for chart in ("SEMR", "SEMR_inference"):
        description = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
        assert description["kubeVersion"] == f">={KUBE_VERSIONS[0]}.0-0"
        done = helm.run("template", "x", helm.charts / chart, "--kube-version", "1.28")
        assert "incompatible with Kubernetes" in done.stderr


def _is_custom(each: Object) -> bool:
    group = each["apiVersion"].rpartition("/")[0]
    return (
        group.endswith((".io", ".coreos.com")) and not group.endswith(".k8s.io")
    ) or group == "gateway.networking.k8s.io"


def _strict(schema: Any) -> Any:
    """The schema in JSON Schema's terms, refusing fields that Kubernetes would silently drop."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        open_ended = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
        if not open_ended:
            made["additionalProperties"] = False
    if made.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    # At the top the type is only "object": what every object has is not described.
    if "x-kubernetes-group-version-kind" in made:
        made.pop("additionalProperties", None)
    if made.get("properties", {}).get("metadata") == {"type": "object"}:
        made["properties"]["metadata"] = {"type": "object"}
    return made
