"""What the README's chapter on Kubernetes has people type exists: scripts, their options, those of pyflyte and helm."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAPTER = re.search(
    r"^## On Kubernetes\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def commands() -> list[list[str]]:
    assert CHAPTER is not None
    blocks = re.findall(r"```sh\n(.*?)```", CHAPTER[1], re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def help_of(*command: str) -> str:
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words", [words for words in commands() if words[0].startswith("helper_scripts/")], ids=" ".join
)
def test_a_script_has_the_options(words: list[str]) -> None:
    script = str(ROOT / words[0])
    # `--cluster` hands over to the script that has the other options.
    text = help_of(script) + (help_of(script, "--cluster") if "--cluster" in words else "")
    for option in (word for word in words if word.startswith("--")):
        assert option in text


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "pyflyte"], ids=" ".join)
def test_pyflyte_has_the_options(words: list[str]) -> None:
    text = help_of(str(Path(sys.executable).parent / "pyflyte"), words[1])
    for option in (word for word in words if word.startswith("--")):
        assert option in text
    for path in (word for word in words if word.startswith("workflow_examples")):
        assert (ROOT / path).exists()


def test_the_images_are_of_this_version() -> None:
    assert CHAPTER is not None
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert set(re.findall(r"ghcr\.io/semr/[a-z-]+:(\S+)", CHAPTER[1])) == {version[1]}
