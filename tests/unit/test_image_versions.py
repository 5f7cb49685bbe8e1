"""One source of versions: package, charts, images and constraints agree, and a Dockerfile names no version of a library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import semr

ROOT = Path(__file__).parents[2]
IMAGES = {path.parent.name: path for path in sorted((ROOT / "docker_build").glob("*/Dockerfile"))}
BAKE = (ROOT / "docker-bake.hcl").read_text(encoding="utf-8")
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
NAMES = {
    "ray_image": "semr-ray",
    "flyte_task": "semr-flyte-task",
    "evolution": "semr-evolution",
    "model_deployment": "semr-model-deployment",
}


def argument(dockerfile: Path, name: str) -> str:
    found = set(re.findall(rf"^ARG {name}=(.*)$", dockerfile.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(found) == 1, f"{dockerfile}: ARG {name}"
    return str(found.pop()).strip('"')


def constraint(package: str) -> str:
    found = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == 1, f"{package} in constraints.txt: {found}"
    return str(found[0])


def test_every_image_is_known() -> None:
    assert set(IMAGES) == set(NAMES)


def test_package_charts_and_images_have_one_version() -> None:
    assert VERSION is not None
    version = VERSION[1]
    assert semr.__version__ == version
    for chart in (ROOT / "helm_charts").glob("*/Chart.yaml"):
        assert yaml.safe_load(chart.read_text(encoding="utf-8"))["appVersion"] == version, chart
    for dockerfile in IMAGES.values():
        assert argument(dockerfile, "VERSION") == version, dockerfile
    assert re.findall(r'variable "(?:TAG|VERSION)" \{ default = "(.+)" \}', BAKE) == [version, version]


@pytest.mark.parametrize("folder", IMAGES)
def test_an_image_is_called_what_the_charts_ask_for(folder: str) -> None:
    name = NAMES[folder]
    text = IMAGES[folder].read_text(encoding="utf-8")
    assert f'org.opencontainers.image.title="{name}"' in text
    assert f'dockerfile = "docker_build/{folder}/Dockerfile"\n  tags       = tag("{name}")' in BAKE
    charts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "helm_charts").rglob("*.[ty][pa]*l"))
    assert name in charts


def test_ray_is_that_of_the_constraints() -> None:
    values = yaml.safe_load((ROOT / "helm_charts" / "SEMR" / "values.yaml").read_text(encoding="utf-8"))
    assert values["ray"]["version"] == constraint("ray")
    assert values["mlflow"]["image"]["tag"] == f"v{constraint('mlflow')}-full"


def test_all_images_have_one_python() -> None:
    """Ray and Flyte pickle between these images, which wants the same minor version of Python everywhere."""
    assert len({argument(dockerfile, "BASE_IMAGE") for dockerfile in IMAGES.values()}) == 1
    assert argument(IMAGES["flyte_task"], "HELM_IMAGE") == argument(IMAGES["evolution"], "HELM_IMAGE")


@pytest.mark.parametrize("folder", IMAGES)
def test_libraries_are_installed_from_the_constraints_alone(folder: str) -> None:
    """Whatever installs is `install-python.sh`, which takes every version from constraints.txt."""
    text = re.sub(r"^#.*$", "", IMAGES[folder].read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not re.search(r"\b(pip|uv|conda)3? install\b", text)
    assert "./install-python.sh dependencies" in text and "COPY docker_build/install-python.sh constraints.txt" in text
    assert (ROOT / "docker_build" / "install-python.sh").read_text(encoding="utf-8").count(
        "--constraint constraints.txt"
    ) == 2


@pytest.mark.parametrize("folder", IMAGES)
def test_an_image_runs_as_nobody_special(folder: str) -> None:
    text = IMAGES[folder].read_text(encoding="utf-8")
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1000:1000"]
    assert ("HEALTHCHECK" in text) == (folder in ("evolution", "model_deployment"))
