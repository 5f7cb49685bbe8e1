"""What tests of the workflow share: small datasets and models on the session's stack, made once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import mlflow
import numpy as np
import psutil
from mlflow.models import infer_signature

from semr import tracking
from semr.registry import ModelVersionRef, Registry
from semr.settings import Settings
from semr.stack.processes import STACK_VARIABLE
from workflow_examples.mnist import pipeline
from workflow_examples.mnist.train import TrainConfig
from workflow_examples.qoe import pipeline as qoe_pipeline
from workflow_examples.qoe.data import ingest
from workflow_examples.qoe.features import WindowPlan
from workflow_examples.qoe.synthetic import Synthetic

EXPERIMENT = "tests"


@lru_cache(maxsize=1)
def small_dataset() -> str:
    """Version of `mnist` with 600 digits."""
    return pipeline.prepare(pipeline.ingest("digits", 600), say=lambda _: None)


@lru_cache(maxsize=1)
def small_qoe_dataset() -> str:
    """Version of `qoe` with the windows of three made-up cells in two days."""
    reports = ingest(synthetic=Synthetic(cells=3, reports=600)).version
    return qoe_pipeline.prepare(reports.version, (), WindowPlan(), say=lambda _: None)


@lru_cache(maxsize=1)
def small_run() -> str:
    """A run whose model was trained for two epochs on `small_dataset`, and judged."""
    dataset = small_dataset()
    run = pipeline.train(TrainConfig(dataset, epochs=2), say=lambda _: None)
    pipeline.evaluate(run, dataset, 0.0, say=lambda _: None)
    return run


def unique(prefix: str) -> str:
    """A name that no other test uses, on a stack that may be old."""
    return f"{prefix}-{uuid.uuid4().hex[:6]}"


def log_constant(settings: Settings, value: float, *, broken: bool = False) -> str:
    """A run with a model that answers `value` for each row of (rows, 2); a broken one fails when it is loaded."""

    class Constant(mlflow.pyfunc.PythonModel):
        def load_context(self, context: object) -> None:
            if broken:
                raise ValueError("this model cannot be loaded")

        def predict(self, context: object, model_input: np.ndarray, params: object = None) -> np.ndarray:
            return np.full((len(model_input), 1), value, dtype=np.float32)

    example = np.zeros((1, 2), dtype=np.float32)
    client = tracking.connect(settings)
    experiment = tracking.experiment_id(client, EXPERIMENT)
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_metric("holdout_accuracy", 1.0)
        mlflow.pyfunc.log_model(
            name="model",
            python_model=Constant(),
            signature=infer_signature(example, example[:, :1]),
            input_example=None if broken else example,
            pip_requirements=["mlflow"],
        )
    return str(run.info.run_id)


def register_constant(settings: Settings, name: str, value: float, *, broken: bool = False) -> ModelVersionRef:
    """`log_constant`, registered as the next version of `name`."""
    return Registry(settings).register(log_constant(settings, value, broken=broken), name)


def processes_of_stack(folder: Path) -> Iterator[psutil.Process]:
    """Every process that carries the mark of the stack in `folder`."""
    identity = (folder / "identity.json").read_text()
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(STACK_VARIABLE)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if mark and mark in identity:
            yield process


@contextmanager
def no_model_left(settings: Settings, *names: str) -> Iterator[None]:
    """Remove the Serve applications `names` afterwards: replicas occupy the stack's CPUs."""
    from semr.deployment.ray_serve import RayServeTarget

    try:
        yield
    finally:
        for name in names:
            RayServeTarget(settings).remove(name)
