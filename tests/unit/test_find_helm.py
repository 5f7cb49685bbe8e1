"""helper_scripts/find-helm.sh and chart-deps.sh, on a PATH that holds only what the test puts there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "helper_scripts"
TOOLS = ("bash", "dirname", "mktemp", "mkdir", "rm", "mv", "chmod", "cat")


class Machine:
    """Basic tools, and commands that answer as told and write down what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.cache, self.log = folder / "bin", folder / "cache", folder / "calls"
        self.bin.mkdir()
        self.log.touch()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        self.command("uname", "echo Linux riscv64")

    def command(self, name: str, body: str) -> Path:
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>{self.log}\n{body}\n')
        path.chmod(0o755)
        return path

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": str(self.cache), "XDG_CACHE_HOME": str(self.cache)}
        command = [str(self.bin / "bash"), str(SCRIPTS / script), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("version", ["v3.16.0", "v3.22", "v3.22.1", "v4.1.4", "v4.3"])
def test_helm_on_path_is_taken(machine: Machine, version: str) -> None:
    helm = machine.command("helm", f"echo {version}")
    done = machine.run("find-helm.sh")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(helm), "")


@pytest.mark.parametrize("version", ["v2.17.0", "v3.9.4", "v3.15.4", ""])
def test_an_old_helm_is_not(machine: Machine, version: str) -> None:
    machine.command("helm", f"echo {version}")
    done = machine.run("find-helm.sh")
    assert done.returncode == 1 and done.stdout == ""
    assert "https://helm.sh/docs/intro/install" in done.stderr


def test_go_builds_one_where_no_package_has_it(machine: Machine) -> None:
    machine.command(
        "go",
        "if [[ $1 == env ]]; then echo go1.26.8; exit; fi\n"
        'printf "#!/bin/bash\\necho v4.1.4\\n" >"$GOBIN/helm"; chmod 755 "$GOBIN/helm"',
    )
    done = machine.run("find-helm.sh")
    kept = machine.cache / "semr" / "helm" / "helm"
    assert done.returncode == 0 and done.stdout.strip() == str(kept), done.stderr
    assert "go install -p 1 helm.sh/helm/v4/cmd/helm@v" in machine.log.read_text()
    before = machine.log.read_text()
    assert machine.run("find-helm.sh").stdout.strip() == str(kept)
    assert "go " not in machine.log.read_text().removeprefix(before), "it was built twice"
    assert list(kept.parent.iterdir()) == [kept], "the work folder is left over"


def test_an_old_go_is_not_tried(machine: Machine) -> None:
    machine.command("go", "echo go1.19.8")
    assert machine.run("find-helm.sh").returncode == 1
    assert "install" not in machine.log.read_text()


@pytest.mark.parametrize("script", ["find-helm.sh", "chart-deps.sh"])
def test_help_and_wrong_arguments(machine: Machine, script: str) -> None:
    assert machine.run(script, "--help").stdout.startswith(f"Usage: {script}")
    done = machine.run(script, "--nonsense")
    assert done.returncode == 2 and "unknown argument '--nonsense'" in done.stderr


def test_dependencies_are_fetched_by_helm(machine: Machine) -> None:
    machine.command("helm", "[[ $1 == version ]] && echo v4.1.4\nexit 0")
    assert machine.run("chart-deps.sh").returncode == 0
    assert machine.log.read_text().splitlines()[-1].startswith("helm dependency build ")
    machine.command("helm", "[[ $1 == version ]] && { echo v4.1.4; exit; }\nexit 1")
    done = machine.run("chart-deps.sh")
    assert done.returncode == 1 and "check that the repositories" in done.stderr
    assert machine.run("chart-deps.sh", str(machine.bin)).returncode == 2
