"""The steps of the MNIST workflow as plain functions: what the Flyte tasks of `wf` call, and anyone without Flyte.

Heavy work runs in Ray jobs; a step submits its job, passes the job's log on, and returns references.
"""

from __future__ import annotations

from semr import steps
from semr.deployment.choice import deployment_target
from semr.deployment.verification import ProbeReport, check_or_restore, probe_classifier
from semr.errors import SemrError
from semr.evaluation import HOLDOUT_ACCURACY
from semr.registry import ModelVersionRef, Registry
from semr.steps import Deployment, Say, deploy
from semr.storage import ObjectStore
from workflow_examples.mnist import data
from workflow_examples.mnist.evaluate import EvaluateConfig
from workflow_examples.mnist.model import to_input
from workflow_examples.mnist.prepare import DATASET, PrepareConfig
from workflow_examples.mnist.train import TrainConfig

# Small samples of a good model differ from its holdout accuracy by a few per cent; a broken deployment differs by far more.
_VERIFICATION_TOLERANCE = 0.05

__all__ = ["Deployment", "deploy"]


class AccuracyTooLowError(SemrError):
    """A trained model is not good enough to be registered."""


def ingest(source: str, limit: int = 0) -> str:
    """Bring raw pictures into the object store; returns the version of `mnist-raw`. `limit` 0 takes all."""
    return data.ingest(source, limit or None).version


def prepare(raw_version: str, say: Say = print) -> str:
    """Divide a raw version into train, validation and holdout; returns the version of `mnist`."""
    return steps.dataset_version_of(steps.run_job(f"{__package__}.prepare", PrepareConfig(raw_version), say))


def train(config: TrainConfig, say: Say = print) -> str:
    """Train data-parallel; returns the MLflow run that holds the model."""
    return steps.run_of(steps.run_job(f"{__package__}.train", config, say))


def evaluate(run_id: str, dataset_version: str, least_accuracy: float, say: Say = print) -> float:
    """Judge the run's model on the holdout; returns its accuracy.

    Raises:
        AccuracyTooLowError: it is below `least_accuracy`.
    """
    steps.run_job(f"{__package__}.evaluate", EvaluateConfig(run_id, dataset_version), say)
    accuracy = steps.metric_of_run(run_id, HOLDOUT_ACCURACY)
    if accuracy < least_accuracy:
        raise AccuracyTooLowError(
            f"Run {run_id} reaches {accuracy:.4f} on the holdout; {least_accuracy:.4f} is wanted."
        )
    return accuracy


def register(run_id: str, model_name: str, dataset_version: str) -> ModelVersionRef:
    """Register the run's model as `challenger`, with its lineage."""
    return steps.register(run_id, model_name, DATASET, dataset_version)


def verify(deployment: Deployment, dataset_version: str, requests: int = 100) -> ProbeReport:
    """Send real holdout pictures; a good answer makes the version champion, a bad one brings the version before it back.

    Raises:
        VerificationError: with the reason.
    """
    report = probe(deployment, dataset_version, requests)
    expected = deployment.model.metrics.get(HOLDOUT_ACCURACY, 0.0)
    check_or_restore(deployment_target(), Registry(), deployment.model, report, expected - _VERIFICATION_TOLERANCE)
    return report


def probe(deployment: Deployment, dataset_version: str, requests: int) -> ProbeReport:
    """Send `requests` holdout pictures, one a request, and compare the answers with their labels."""
    store = ObjectStore.from_settings()
    holdout = store.read(store.dataset(DATASET, dataset_version), "holdout").slice(0, requests)
    images = to_input(holdout["image"].combine_chunks().flatten().to_numpy())
    return probe_classifier(deployment.url, deployment.model.name, images, holdout["label"].to_numpy(), requests)
