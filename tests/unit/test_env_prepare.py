"""The two preparation scripts, on a PATH that holds only what the test puts there."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "helper_scripts"
TOOLS = ("bash", "env", "dirname", "mktemp", "mkdir", "rm", "mv", "cat", "grep", "tee", "chmod", "id", "uname")


class Machine:
    """A PATH with the basic tools, to which commands are added; every call of those is written to a log."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.log = folder / "calls"
        self.cache = folder / "cache"
        self.bin.mkdir()
        self.log.touch()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)

    def command(self, name: str, body: str = "exit 0") -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>{self.log}\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def installing(self, name: str, *commands: str) -> None:
        """A package manager that brings `commands`."""
        lines = [f"printf '#!/bin/bash\\n' >{self.bin}/{each}; chmod +x {self.bin}/{each}" for each in commands]
        self.command(name, "\n".join(['[[ " $* " == *" install "* ]] || exit 0', *lines]))

    def user(self, sudo: str = "exit 1") -> None:
        """Not root, with a sudo that does as told; no privileged command is really run."""
        self.command("id", "echo 1000")
        self.command("sudo", sudo)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    def run(self, script: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": str(self.cache), "XDG_CACHE_HOME": str(self.cache)}
        command = [str(self.bin / "bash"), str(SCRIPTS / script), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.command("uname", "echo Linux")
    return made


# Passes on what apt-get is asked, and nothing else: the policy file of the machine that runs the tests is not touched.
SUDO = 'if [[ "$*" == *apt-get* ]]; then shift; exec "$@"; fi; cat >/dev/null'


def test_nothing_is_installed_when_all_is_there(machine: Machine) -> None:
    for name in ("prometheus", "prometheus-alertmanager", "uv", "apt-get", "sudo"):
        machine.command(name)
    result = machine.run("env-prepare.sh")
    assert result.returncode == 0, result.stderr
    assert "nothing to install" in result.stdout and f"uv is {machine.bin}/uv" in result.stdout
    assert not [call for call in machine.calls if call.startswith(("apt-get", "sudo"))]


def test_missing_packages_are_installed_with_apt_and_the_second_run_does_nothing(machine: Machine) -> None:
    machine.command("uv")
    machine.user(SUDO)
    machine.installing("apt-get", "prometheus", "prometheus-alertmanager")
    result = machine.run("env-prepare.sh")
    assert result.returncode == 0, result.stderr
    assert "installing: prometheus prometheus-alertmanager" in result.stdout
    [install] = [call for call in machine.calls if call.startswith("apt-get")]
    assert install.endswith("install -y --no-install-recommends prometheus prometheus-alertmanager")
    sudo = [call for call in machine.calls if call.startswith("sudo")]
    policy = next(at for at, call in enumerate(sudo) if "tee /usr/sbin/policy-rc.d" in call)
    apt = next(at for at, call in enumerate(sudo) if "apt-get" in call)
    undone = next(at for at, call in enumerate(sudo) if "rm -f /usr/sbin/policy-rc.d" in call)
    assert policy < apt < undone, "services must not start, and the policy is taken back"
    machine.log.write_text("")
    assert machine.run("env-prepare.sh").returncode == 0
    assert not [call for call in machine.calls if call.startswith("apt-get")]


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    for name in ("uv", "alertmanager"):
        machine.command(name)
    machine.user(SUDO)
    machine.installing("apt-get", "prometheus")
    result = machine.run("env-prepare.sh")
    assert result.returncode == 0 and "installing: prometheus\n" in result.stdout


def test_what_the_tests_of_scripts_and_images_need_is_installed_when_asked_for(machine: Machine) -> None:
    for name in ("uv", "prometheus", "alertmanager", "apt-get", "podman", "postgres"):
        machine.command(name)
    result = machine.run("env-prepare.sh", "--tests", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "would install: bats ansible ansible-lint buildah runc debootstrap redis-server\n" in result.stdout
    assert "nothing to install" in machine.run("env-prepare.sh").stdout


def test_cluster_hands_over_to_the_script_for_clients(machine: Machine) -> None:
    machine.command("basename", f'exec {shutil.which("basename")} "$@"')
    result = machine.run("env-prepare.sh", "--cluster", "--nonsense")
    assert result.returncode == 2 and "cluster-client: unknown argument '--nonsense'" in result.stderr


def test_lists_are_refreshed_when_the_first_try_fails_and_failure_takes_the_policy_back(machine: Machine) -> None:
    machine.command("uv")
    machine.user(SUDO)
    machine.command("apt-get", "exit 100")
    result = machine.run("env-prepare.sh")
    assert result.returncode == 1
    assert "could not install prometheus prometheus-alertmanager" in result.stderr and "network" in result.stderr
    assert [("update" in call) for call in machine.calls if call.startswith("apt-get")] == [False, True]
    assert "sudo -n rm -f /usr/sbin/policy-rc.d" in machine.calls


def test_a_run_that_is_ended_takes_the_policy_back(machine: Machine) -> None:
    machine.command("uv")
    machine.user(SUDO)
    machine.command("apt-get", "kill -TERM $PPID; exit 1")
    assert machine.run("env-prepare.sh").returncode == -signal.SIGTERM
    assert "sudo -n rm -f /usr/sbin/policy-rc.d" in machine.calls


def test_services_do_not_start_at_boot(machine: Machine) -> None:
    machine.command("uv")
    machine.command("systemctl")
    machine.user(SUDO)
    machine.installing("apt-get", "prometheus", "prometheus-alertmanager")
    assert machine.run("env-prepare.sh").returncode == 0
    disabled = [call.split()[-1] for call in machine.calls if "systemctl disable" in call]
    assert disabled == ["prometheus.service", "prometheus-alertmanager.service"]


def test_install_that_brings_nothing_is_an_error(machine: Machine) -> None:
    machine.command("uv")
    machine.user(SUDO)
    machine.command("apt-get")
    result = machine.run("env-prepare.sh")
    assert result.returncode == 1 and "still no command prometheus" in result.stderr


def test_dry_run_changes_nothing(machine: Machine) -> None:
    machine.user()
    machine.command("apt-get")
    result = machine.run("env-prepare.sh", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "would install: prometheus prometheus-alertmanager python3 python3-venv" in result.stdout
    assert not [call for call in machine.calls if call.startswith(("apt-get", "sudo"))]
    assert not machine.cache.exists()


def test_a_user_without_rights_is_told_what_to_run(machine: Machine) -> None:
    machine.command("uv")
    machine.command("apt-get")
    machine.user()
    result = machine.run("env-prepare.sh")
    assert result.returncode == 1
    assert "sudo apt-get install prometheus prometheus-alertmanager" in result.stderr
    assert not [call for call in machine.calls if call.startswith("apt-get")]
    (machine.bin / "sudo").unlink()
    assert machine.run("env-prepare.sh").returncode == 1


def test_other_systems_are_told_what_is_missing(machine: Machine) -> None:
    machine.command("uv")
    result = machine.run("env-prepare.sh")
    assert result.returncode == 1 and "no apt-get" in result.stderr and "prometheus" in result.stderr
    machine.command("uname", "echo SunOS")
    result = machine.run("env-prepare.sh")
    assert result.returncode == 1 and "SunOS" in result.stderr


def test_macos_uses_homebrew(machine: Machine) -> None:
    machine.command("uv")
    machine.command("uname", "echo Darwin")
    machine.command("id", "echo 501")
    result = machine.run("env-prepare.sh")
    assert result.returncode == 1 and "https://brew.sh" in result.stderr
    machine.installing("brew", "prometheus", "alertmanager")
    result = machine.run("env-prepare.sh")
    assert result.returncode == 0, result.stderr
    assert "brew install prometheus alertmanager" in machine.calls
    (machine.bin / "prometheus").unlink()
    machine.command("brew", "exit 1")
    assert "Homebrew could not install prometheus" in machine.run("env-prepare.sh").stderr
    machine.command("id", "echo 0")
    assert "refuses to run as root" in machine.run("env-prepare.sh").stderr


@pytest.mark.parametrize("script", ["env-prepare.sh", "find-uv.sh"])
def test_help_and_wrong_arguments(machine: Machine, script: str) -> None:
    result = machine.run(script, "--help")
    assert result.returncode == 0 and result.stdout.startswith(f"Usage: {script}")
    result = machine.run(script, "--nonsense")
    assert result.returncode == 2 and "--nonsense" in result.stderr and result.stdout == ""


def test_uv_on_path_is_used(machine: Machine) -> None:
    machine.command("uv")
    result = machine.run("find-uv.sh")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{machine.bin}/uv\n", "")


FAKE_UV = "printf '#!/bin/bash\\necho uv 1.0\\n' >{path}; chmod +x {path}"


def test_uv_is_installed_once_into_the_cache(machine: Machine) -> None:
    machine.command("uv", "exit 1")
    # A python3 whose venv has a pip that brings a uv.
    pip = FAKE_UV.format(path='"${0%/*}/uv"')
    machine.command(
        "python3",
        f"""[[ "$1 $2" == "-m venv" ]] || exit 0
mkdir -p "$3/bin"
cat >"$3/bin/python" <<'PIP'
#!/bin/bash
echo noise of pip
{pip}
PIP
chmod +x "$3/bin/python" """,
    )
    result = machine.run("find-uv.sh")
    path = machine.cache / "semr/uv/uv"
    assert (result.returncode, result.stdout) == (0, f"{path}\n"), result.stderr
    assert [each.name for each in path.parent.iterdir()] == ["uv"], "nothing but uv is left"
    machine.log.write_text("")
    assert machine.run("find-uv.sh").stdout == f"{path}\n"
    assert not [call for call in machine.calls if call.startswith("python3")]


def test_pip_serves_where_python_cannot_make_a_venv(machine: Machine) -> None:
    pip = FAKE_UV.format(path='"$PIP_TARGET/bin/uv"')
    machine.command(
        "python3", f'[[ "$1" == -c ]] && exit 1\n[[ "$3" == install ]] || exit 0\nmkdir $PIP_TARGET/bin\n{pip}'
    )
    result = machine.run("find-uv.sh")
    assert (result.returncode, result.stdout) == (0, f"{machine.cache}/semr/uv/uv\n"), result.stderr


def test_missing_ways_to_uv_are_explained(machine: Machine) -> None:
    result = machine.run("find-uv.sh")
    assert result.returncode == 1 and "install python3" in result.stderr
    machine.command("python3", "exit 1")
    result = machine.run("find-uv.sh")
    assert result.returncode == 1 and "env-prepare.sh" in result.stderr
    machine.command("python3", '[[ "$1" == -c || "$3" == --version ]]')
    result = machine.run("find-uv.sh")
    assert result.returncode == 1 and result.stdout == ""
    machine.command("python3", '[[ "$3" == --version ]]')
    result = machine.run("find-uv.sh")
    assert result.returncode == 1 and "check the network" in result.stderr
    assert list((machine.cache / "semr/uv").iterdir()) == [], "failed installs leave nothing"


def test_scripts_are_clean_for_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, *SCRIPTS.glob("env-prepare.sh"), *SCRIPTS.glob("find-uv.sh")], check=True)
