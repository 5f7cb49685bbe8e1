"""The steps of the QoE workflow as plain functions: what the Flyte tasks of `wf` call, and anyone without Flyte.

Heavy work runs in Ray jobs; a step submits its job, passes the job's log on, and returns references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semr import steps
from semr.deployment.choice import deployment_target
from semr.deployment.verification import ProbeReport, check_or_restore, probe_model
from semr.evaluation import HOLDOUT_ACCURACY
from semr.registry import ModelVersionRef, Registry
from semr.steps import Deployment, Say, deploy
from semr.storage import ObjectStore
from workflow_examples.qoe import data
from workflow_examples.qoe.evaluate import REPORT, EvaluateConfig, read_split, tolerance_of
from workflow_examples.qoe.features import WindowPlan
from workflow_examples.qoe.model import ModelConfig
from workflow_examples.qoe.prepare import DATASET, PrepareConfig
from workflow_examples.qoe.train import TrainConfig

__all__ = ["Deployment", "deploy"]

# Small samples of a good model differ from its holdout by a few per cent; a broken deployment differs by far more.
_VERIFICATION_TOLERANCE = 0.1


@dataclass(frozen=True)
class Evaluation:
    """What came of judging a model: whether it beats the baselines, the reason in a sentence, and its error."""

    is_better: bool
    reason: str


def check(config: TrainConfig, plan: WindowPlan) -> None:
    """Whether a network for windows of that plan can be trained in that way, as far as one knows before there are data.

    Raises:
        InvalidInputError: a number or a name cannot be.
    """
    ModelConfig(config.architecture, plan.steps, len(plan.columns), config.hidden, config.layers)
    config.plan()


def ingest(source: str, scale: int = 1, say: Say = print) -> str:
    """Bring reports into the object store; returns the version of `qoe-raw`."""
    done = data.ingest(source, scale=scale)
    if done.reading.malformed:
        say(f"{done.reading.malformed} of {done.reading.lines} lines are malformed and kept in {done.quarantine}")
    return done.version.version


def prepare(raw_version: str, cells: Sequence[str], plan: WindowPlan, say: Say = print) -> str:
    """Windows, scaled and divided by time; returns the version of `qoe`."""
    config = PrepareConfig(raw_version, tuple(cells), plan)
    return steps.dataset_version_of(steps.run_job(f"{__package__}.prepare", config, say))


def train(config: TrainConfig, say: Say = print) -> str:
    """Train data-parallel; returns the MLflow run that holds the model."""
    return steps.run_of(steps.run_job(f"{__package__}.train", config, say))


def evaluate(run_id: str, dataset_version: str, say: Say = print) -> Evaluation:
    """Judge the run's model on the holdout against persistence and moving average."""
    steps.run_job(f"{__package__}.evaluate", EvaluateConfig(run_id, dataset_version), say)
    skill = steps.artifact_of_run(run_id, REPORT)["skill"]
    return Evaluation(bool(skill["is_better"]), str(skill["reason"]))


def register(run_id: str, model_name: str, dataset_version: str) -> ModelVersionRef:
    """Register the run's model as `challenger`, with its lineage."""
    return steps.register(run_id, model_name, DATASET, dataset_version)


def verify(deployment: Deployment, dataset_version: str, requests: int = 100) -> ProbeReport:
    """Send real holdout windows; good answers make the version champion, bad ones bring the version before it back.

    Raises:
        VerificationError: with the reason.
    """
    report = probe(deployment, dataset_version, requests)
    expected = deployment.model.metrics.get(HOLDOUT_ACCURACY, 0.0)
    check_or_restore(deployment_target(), Registry(), deployment.model, report, expected - _VERIFICATION_TOLERANCE)
    return report


def probe(deployment: Deployment, dataset_version: str, requests: int) -> ProbeReport:
    """Send `requests` holdout windows, evenly over time and cells, one a request; right is what is within the tolerance."""
    store = ObjectStore.from_settings()
    holdout = read_split(store, store.dataset(DATASET, dataset_version), "holdout")
    rows = np.linspace(0, len(holdout.targets) - 1, min(requests, len(holdout.targets))).astype(int)
    tolerance = np.array(tolerance_of(deployment.model.uri) or (np.inf,) * len(holdout.columns))

    def is_right(forecast: npt.NDArray[np.float32], row: int) -> bool:
        return bool((np.abs(forecast[0] - holdout.targets[rows[row]]) <= tolerance).all())

    return probe_model(deployment.url, deployment.model.name, holdout.windows[rows], is_right, requests)
