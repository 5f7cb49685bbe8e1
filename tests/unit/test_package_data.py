"""Files of the package that are no Python, where they are and where they are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import semr
from semr import package_data as module
from semr.package_data import MissingFileError, package_data

ROOT = Path(__file__).parents[2]
PLACES = ("charts/SEMR_inference", "helm_charts/SEMR_inference")


@pytest.fixture
def modules_alone(tmp_path: Path) -> Path:
    """What `pyflyte run --remote` takes along from a checkout: modules, and nothing else."""
    for package in ("semr", "workflow_examples"):
        for path in (ROOT / package).rglob("*.py"):
            to = tmp_path / path.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    return tmp_path


def test_a_checkout_has_the_chart_itself() -> None:
    assert package_data(*PLACES) == ROOT / "helm_charts" / "SEMR_inference"


def test_workflows_can_be_imported_without_any_of_these_files(modules_alone: Path) -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("workflow_examples/*/wf*.py")]
    assert len(names) == 4
    code = f"import {', '.join(names)}, semr; print(semr.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=modules_alone, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(modules_alone))


def test_modules_that_hide_those_of_the_image_find_its_files(
    modules_alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "site-packages"
    (image / "semr" / PLACES[0]).mkdir(parents=True)

    class Installed:
        def locate_file(self, path: str) -> Path:
            return image / path

    monkeypatch.setattr(semr, "__file__", str(modules_alone / "semr" / "__init__.py"))
    monkeypatch.setattr(module, "distribution", lambda _: Installed())
    assert package_data(*PLACES) == image / "semr" / PLACES[0]


def test_a_file_that_is_nowhere_is_named(modules_alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(semr, "__file__", str(modules_alone / "semr" / "__init__.py"))
    monkeypatch.setattr(module, "distribution", not_installed)
    with pytest.raises(MissingFileError, match=r"without charts/SEMR_inference .* install the package again"):
        package_data(*PLACES)
