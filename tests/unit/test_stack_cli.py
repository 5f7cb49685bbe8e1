"""`semr` without any server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from semr.stack.display import print_status, show_progress
from semr.stack.status import ServiceState, ServiceStatus, StackState, StackStatus


def _semr(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEMR_")}
    return subprocess.run(
        [sys.executable, "-m", "semr.cli", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(arguments: list[str]) -> None:
    shown = _semr(*arguments)
    assert shown.returncode == 0
    for command in ("up", "status", "down", "logs", "env", "data"):
        assert f" {command} " in shown.stdout


def test_help_imports_none_of_the_servers() -> None:
    script = (
        "import sys; sys.argv = ['semr', '--help']\n"
        "from semr.cli import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "print('HEAVY', {'ray', 'mlflow', 'boto3', 'httpx', 'numpy', 'pyarrow'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "HEAVY set()" in shown.stdout


def test_unknown_command_is_a_usage_error() -> None:
    assert _semr("dance").returncode == 2


def test_commands_without_a_stack(tmp_path: Path) -> None:
    assert _semr("status", cwd=tmp_path).returncode == 1
    assert _semr("down", cwd=tmp_path).returncode == 0
    shown = _semr("env", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("semr: ")
    assert shown.stderr.count("\n") == 1
    assert _semr("logs", "ray", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_unknown_service_lists_the_known(tmp_path: Path) -> None:
    shown = _semr("logs", "database", cwd=tmp_path)
    assert shown.returncode == 2
    assert "object-store" in shown.stderr


@pytest.mark.parametrize("name", ["nowhere", "../mnist", "a.b", ""])
def test_unknown_example(name: str) -> None:
    shown = _semr("data", name)
    assert shown.returncode == 2
    assert shown.stderr.startswith("semr: There is no example")


def test_data_passes_all_arguments_on() -> None:
    shown = _semr("data", "mnist", "--help")
    assert shown.returncode == 0
    assert "--source" in shown.stdout


def test_interrupt_gives_130(tmp_path: Path) -> None:
    log = tmp_path / ".semr" / "logs" / "ray.log"
    log.parent.mkdir(parents=True)
    log.write_text("first\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "semr.cli", "logs", "ray", "-f", "--dir", str(tmp_path / ".semr")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors


def _status(state: ServiceState, detail: str = "") -> StackStatus:
    services = [ServiceStatus("ray", state, "http://127.0.0.1:8265", detail, pid=7, started=time.time() - 3700)]
    return StackStatus(StackState.STARTING, services=services)


def test_progress_without_a_terminal_is_one_line_a_change() -> None:
    console = Console(force_terminal=False, width=40)
    with console.capture() as captured, show_progress(console) as progress:
        for detail in ("waiting for its port", "waiting for the dashboard"):
            progress(_status(ServiceState.STARTING, detail))
        progress(_status(ServiceState.HEALTHY))
    lines = captured.get().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("ray: starting waiting for its port")
    assert lines[1].endswith("ray: healthy http://127.0.0.1:8265")


def test_progress_on_a_terminal_is_a_live_table() -> None:
    console = Console(force_terminal=True, width=100)
    with console.capture() as captured, show_progress(console) as progress:
        progress(_status(ServiceState.FAILED, "ended [with exit code 1]"))
    assert "ended [with exit code 1]" in captured.get()


def test_status_table_is_whole_in_a_pipe() -> None:
    console = Console(force_terminal=False, width=20)
    with console.capture() as captured:
        print_status(_status(ServiceState.BACKING_OFF, "ended by signal SIGKILL; next start in 4 s"), console)
    assert "http://127.0.0.1:8265" in captured.get()
    assert "next start in 4 s" in captured.get()
    assert "1 h 1 min" in captured.get()
