"""Render the charts with a real helm, in a temporary copy that has stand-ins for the charts of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHARTS = ROOT / "helm_charts"
EXAMPLE = ROOT / "values_example.yaml"
#: Chart folder to a release name and the values files under which it has to work.
PROFILES: dict[str, tuple[str, list[Path]]] = {
    "SEMR": ("semr", [*sorted((CHARTS / "SEMR" / "ci").glob("*.yaml")), EXAMPLE]),
    "SEMR_inference": ("inference-mnist", sorted((CHARTS / "SEMR_inference" / "ci").glob("*.yaml"))),
}
#: (chart, profile), the profile None being the defaults.
CASES = [("SEMR", None), *((chart, path.stem) for chart, (_, paths) in PROFILES.items() for path in paths)]
#: Names a folder with the charts of others, for tests of which stand-ins are not enough.
DEPENDENCIES_VARIABLE = "SEMR_TEST_CHART_DEPENDENCIES"
NAMESPACE = "ml"
KUBE_VERSION = "1.34"
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "Pod", "PodTemplate", "RayCluster", "RayService")

# The one in C is ten times as fast, where there is one.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod specification found in `owner`, with the labels that its pods get."""

    owner: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


@dataclass(frozen=True)
class Rendered:
    """What helm made of a chart."""

    objects: tuple[Object, ...]

    def of(self, *kinds: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] in kinds]

    def get(self, kind: str, name: str) -> Object:
        found = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        assert len(found) == 1, (
            f"{len(found)} {kind} {name}; there are {[each['metadata']['name'] for each in self.of(kind)]}"
        )
        return found[0]

    @property
    def pods(self) -> list[Pod]:
        return [pod for each in self.objects for pod in _pods(each)]


@dataclass
class Helm:
    """The helm command over copies of the charts."""

    program: str
    charts: Path
    cache: dict[str, Rendered] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [self.program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)

    def template(
        self, chart: str, *arguments: str | Path, release: str = "", namespace: str = NAMESPACE, show: str = ""
    ) -> subprocess.CompletedProcess[str]:
        release = release or PROFILES[chart][0]
        only = ["--show-only", show] if show else []
        version = ["--kube-version", KUBE_VERSION]
        return self.run("template", release, self.charts / chart, "--namespace", namespace, *version, *only, *arguments)

    def render(self, chart: str, profile: str | None = None, *sets: str, release: str = "") -> Rendered:
        """The objects under a profile (None: the defaults) and `--set` expressions, once for the same question."""
        key = json.dumps([chart, profile, sets, release])
        if key not in self.cache:
            arguments: list[str | Path] = [] if profile is None else ["--values", values_of(chart, profile)]
            for each in sets:
                arguments += ["--set", each]
            done = self.template(chart, *arguments, release=release)
            assert done.returncode == 0, done.stderr
            self.cache[key] = parse(done.stdout)
        return self.cache[key]

    def model_release(self, contract: Mapping[str, str], model: str, folder: Path) -> Rendered:
        """The release of version 1 of a model, as the deployment target makes it with a contract; `folder` for its values."""
        values = folder / "values.yaml"
        values.write_text(contract["SEMR_HELM_VALUES"])
        url = contract.get("SEMR_MLFLOW_URI", "http://mlflow.elsewhere:5000")
        sets = [f"--set=model.name={model}", "--set=model.version=1", f"--set=mlflow.url={url}"]
        done = self.template("SEMR_inference", "--values", values, *sets, release=f"inference-{model}")
        assert done.returncode == 0, done.stderr
        return parse(done.stdout)

    def refusal(self, chart: str, profile: str | None, *sets: str) -> str:
        """What helm says when it refuses the values."""
        key = json.dumps([chart, profile, sets])
        if key in self.refusals:
            return self.refusals[key]
        arguments: list[str | Path] = [] if profile is None else ["--values", values_of(chart, profile)]
        for each in sets:
            arguments += ["--set", each]
        done = self.template(chart, *arguments)
        assert done.returncode != 0, f"{chart} took {sets}"
        self.refusals[key] = " ".join(done.stderr.split())
        return self.refusals[key]


def parse(text: str) -> Rendered:
    """The objects of a stream of YAML documents."""
    return Rendered(tuple(each for each in yaml.load_all(text, Loader=_LOADER) if each))


def values_of(chart: str, profile: str) -> Path:
    return next(path for path in PROFILES[chart][1] if path.stem == profile)


def copy_charts(to: Path, source: Path = CHARTS) -> Path:
    """The charts, with an empty chart of the right name and version for each dependency."""
    for chart in PROFILES:
        shutil.copytree(source / chart, to / chart, ignore=shutil.ignore_patterns("charts", "Chart.lock"))
        description = yaml.safe_load((to / chart / "Chart.yaml").read_text())
        for dependency in description.get("dependencies", []):
            folder = to / chart / "charts" / dependency["name"]
            (folder / "templates").mkdir(parents=True)
            stand_in = {"apiVersion": "v2", "name": dependency["name"], "version": dependency["version"]}
            (folder / "Chart.yaml").write_text(yaml.safe_dump(stand_in))
            (folder / "values.yaml").write_text("")
            # What comes out of it are the values it was given, so that tests see what the real chart would see.
            (folder / "templates" / "values.yaml").write_text(
                "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: stand-in-{{ .Chart.Name }}\n"
                "  namespace: {{ .Release.Namespace }}\n"
                '  labels: {stand-in: "true"}\ndata:\n  values: {{ tpl (toJson .Values) . | quote }}\n'
            )
    return to


def copy_with_dependencies(to: Path) -> Path:
    """The chart SEMR with the real charts that it depends on.

    Raises:
        FileNotFoundError: they are neither where `helper_scripts/chart-deps.sh` puts them, nor in the folder that
            `DEPENDENCIES_VARIABLE` names.
    """
    folder = Path(os.environ.get(DEPENDENCIES_VARIABLE) or CHARTS / "SEMR" / "charts")
    wanted = [each["name"] for each in yaml.safe_load((CHARTS / "SEMR" / "Chart.yaml").read_text())["dependencies"]]
    missing = [name for name in wanted if not [*folder.glob(f"{name}-*.tgz"), *folder.glob(f"{name}/Chart.yaml")]]
    if missing:
        raise FileNotFoundError(
            f"not in {folder}, where helper_scripts/chart-deps.sh would put them: {', '.join(missing)}"
        )
    shutil.copytree(CHARTS / "SEMR", to / "SEMR", ignore=shutil.ignore_patterns("charts"))
    shutil.copytree(folder, to / "SEMR" / "charts")
    return to


def own(rendered: Rendered) -> Rendered:
    """Without the objects of stand-ins."""
    return Rendered(tuple(each for each in rendered.objects if "stand-in" not in each["metadata"].get("labels", {})))


def values_given_to(rendered: Rendered, chart: str) -> Object:
    """Values that a dependency was given, with what it would evaluate evaluated."""
    values: Object = json.loads(rendered.get("ConfigMap", f"stand-in-{chart}")["data"]["values"])
    return values


def _pods(each: Object) -> Iterator[Pod]:
    name = f"{each['kind']}/{each['metadata']['name']}"
    if each["kind"] == "Pod":
        yield _pod(name, each)
    elif each["kind"] == "PodTemplate":
        yield _pod(name, each["template"])
    elif each["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
        yield _pod(name, each["spec"]["template"])
    elif each["kind"] in ("RayCluster", "RayService"):
        cluster = each["spec"]["rayClusterConfig"] if each["kind"] == "RayService" else each["spec"]
        yield _pod(f"{name}/head", cluster["headGroupSpec"]["template"])
        for group in cluster["workerGroupSpecs"]:
            yield _pod(f"{name}/{group['groupName']}", group["template"])


def _pod(owner: str, template: Object) -> Pod:
    metadata = template["metadata"]
    return Pod(owner, metadata.get("labels", {}), metadata.get("annotations") or {}, template["spec"])


def dig(value: Any, *path: str | int) -> Any:
    """The value at `path`, None where there is none."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


@lru_cache(maxsize=1)
def find_helm() -> tuple[str, str]:
    """Path of helm, or the reason why there is none."""
    try:
        done = subprocess.run(
            [str(ROOT / "helper_scripts" / "find-helm.sh")], capture_output=True, text=True, timeout=900, check=False
        )
    except subprocess.TimeoutExpired:
        return "", "helper_scripts/find-helm.sh took more than 15 minutes"
    return done.stdout.strip(), " ".join(done.stderr.split())[-300:]
