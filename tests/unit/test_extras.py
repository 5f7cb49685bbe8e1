"""The distribution's core is enough for a model server, and what is missing is named by the extra that brings it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution

import pytest

from semr import extras


def test_the_model_server_imports_nothing_that_an_extra_brings() -> None:
    code = "import semr.inference.__main__, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) & {*extras._EXTRAS, "onnx", "onnxruntime"} == set()


def test_every_extra_that_an_error_names_is_one() -> None:
    known = set(distribution("semr").metadata.get_all("Provides-Extra") or [])
    assert set(extras._EXTRAS.values()) <= known


def test_a_missing_library_is_named_by_what_installs_it() -> None:
    error = extras.missing_extra(ModuleNotFoundError("No module named 'ray.train'", name="ray.train"))
    assert error is not None
    assert str(error) == "This needs ray, which is not installed: pip install 'semr[ray]'."
    assert error.exit_code == 2
    assert extras.missing_extra(ModuleNotFoundError(name="semr.nonsense")) is None


def test_a_command_without_its_libraries_says_so_in_one_line() -> None:
    """As on a machine where only the core is installed."""
    code = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('ray', 'flask'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from semr.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "up"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"semr: This needs \w+, which is not installed: pip install 'semr\[\w+\]'\.\n", done.stderr)


@pytest.mark.parametrize("module", extras.STACK)
def test_the_stack_s_libraries_are_there(module: str) -> None:
    extras.need([module])
