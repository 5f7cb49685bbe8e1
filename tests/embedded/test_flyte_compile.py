"""The workflow compiles for a Flyte backend, without one at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from flyteidl.admin.workflow_pb2 import WorkflowSpec

from semr.settings import ENV_PREFIX
from workflow_examples.mnist.wf_evolution import mnist_watch

ROOT = Path(__file__).parents[2]
IMAGE = "ghcr.io/example/semr-flyte-task:0.1.0"
TASKS = {"ingest", "prepare", "train", "evaluate", "register", "deploy", "verify"}


def pyflyte(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`pyflyte` in the repository, with no stack and no settings to be found."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return subprocess.run(
        [str(Path(sys.executable).with_name("pyflyte")), *arguments],
        cwd=ROOT,
        env={**environment, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_package_holds_every_task_and_the_workflow(tmp_path: Path) -> None:
    archive = tmp_path / "mnist.tgz"
    done = pyflyte("--pkgs", "workflow_examples.mnist", "package", "--image", IMAGE, "--output", str(archive))
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(archive) as package:
        names = package.getnames()
    for task in TASKS:
        assert any(f"workflow_examples.mnist.wf.{task}_1.pb" in name for name in names), (task, names)
    assert any("workflow_examples.mnist.wf.mnist_train_2.pb" in name for name in names), names


def test_the_qoe_workflows_compile(tmp_path: Path) -> None:
    archive = tmp_path / "qoe.tgz"
    # By module: of a whole package every module is imported, the networks with PyTorch among them.
    modules = ("--pkgs", "workflow_examples.qoe.wf", "--pkgs", "workflow_examples.qoe.wf_evolution")
    done = pyflyte(*modules, "package", "--image", IMAGE, "--output", str(archive))
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(archive) as package:
        names = package.getnames()
    for workflow in ("wf.qoe_train", "wf_evolution.qoe_retrain", "wf_evolution.qoe_watch"):
        assert any(f"workflow_examples.qoe.{workflow}_2.pb" in name for name in names), (workflow, names)
    (watch,) = (name for name in names if "wf_evolution.qoe_watch_2.pb" in name)
    with tarfile.open(archive) as package:
        compiled = package.extractfile(watch)
        assert compiled is not None
        template = WorkflowSpec.FromString(compiled.read()).template
    inputs = set(template.interface.inputs.variables)
    assert inputs == set(mnist_watch.python_interface.inputs)
    branches = template.nodes[-1].branch_node.if_else
    (retrain,) = (
        case.then_node
        for case in (branches.case, *branches.other)
        if case.then_node.workflow_node.sub_workflow_ref.name.endswith(".qoe_retrain")
    )
    assert {each.var for each in retrain.inputs if each.var == each.binding.promise.var} == inputs


def test_the_registration_is_rehearsed(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("admin:\n  endpoint: dns:///127.0.0.1:9\n  insecure: true\n")
    done = pyflyte(
        *("register", "--dry-run", "--non-fast", "--image", IMAGE, "--version", "v1", "workflow_examples/mnist"),
        env={"FLYTECTL_CONFIG": str(config)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mnist_train" in done.stdout


def test_the_inputs_are_documented_on_the_command_line() -> None:
    done = pyflyte("run", "workflow_examples/mnist/wf.py", "mnist_train", "--help")
    assert done.returncode == 0, done.stderr
    for name in ("source", "limit", "epochs", "workers", "least_accuracy", "model_name"):
        assert f"--{name}" in done.stdout
