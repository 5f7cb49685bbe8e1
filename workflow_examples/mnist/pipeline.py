"""The steps of the MNIST workflow as plain functions: what the Flyte tasks of `wf` call, and anyone without Flyte.

Heavy work runs in Ray jobs; a step submits its job, passes the job's log on, and returns references.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from semr.deployment.choice import deployment_target
from semr.deployment.verification import ProbeReport, check_or_restore, probe_classifier
from semr.errors import SemrError
from semr.evaluation import HOLDOUT_ACCURACY
from semr.job_entry import config_argument
from semr.jobs import JobResult, RayJobs
from semr.registry import ModelVersionRef, Registry
from semr.settings import get_settings
from semr.storage import ObjectStore
from workflow_examples.mnist import data
from workflow_examples.mnist.evaluate import EvaluateConfig
from workflow_examples.mnist.model import to_input
from workflow_examples.mnist.prepare import DATASET, PrepareConfig
from workflow_examples.mnist.train import TrainConfig

# Small samples of a good model differ from its holdout accuracy by a few per cent; a broken deployment differs by far more.
_VERIFICATION_TOLERANCE = 0.05

Say = Callable[[str], None]


class AccuracyTooLowError(SemrError):
    """A trained model is not good enough to be registered."""


@dataclass(frozen=True)
class Deployment:
    """A model version in service: its reference, the URL before `/v2`, and its number of replicas."""

    model: ModelVersionRef
    url: str
    replicas: int


def ingest(source: str, limit: int = 0) -> str:
    """Bring raw pictures into the object store; returns the version of `mnist-raw`. `limit` 0 takes all."""
    return data.ingest(source, limit or None).version


def prepare(raw_version: str, say: Say = print) -> str:
    """Divide a raw version into train, validation and holdout; returns the version of `mnist`."""
    return dataset_version_of(
        RayJobs().run(f"{__package__}.prepare", config_argument(PrepareConfig(raw_version)), on_line=say)
    )


def train(config: TrainConfig, say: Say = print) -> str:
    """Train data-parallel; returns the MLflow run that holds the model."""
    result = RayJobs().run(f"{__package__}.train", config_argument(config), on_line=say)
    if result.run_id is None:
        raise SemrError(
            f"Job {result.job_id} succeeded but left no MLflow run: do Ray and this process use one MLflow?"
        )
    return result.run_id


def evaluate(run_id: str, dataset_version: str, least_accuracy: float, say: Say = print) -> float:
    """Judge the run's model on the holdout; returns its accuracy.

    Raises:
        AccuracyTooLowError: it is below `least_accuracy`.
    """
    RayJobs().run(f"{__package__}.evaluate", config_argument(EvaluateConfig(run_id, dataset_version)), on_line=say)
    accuracy = _metric_of_run(run_id, HOLDOUT_ACCURACY)
    if accuracy < least_accuracy:
        raise AccuracyTooLowError(
            f"Run {run_id} reaches {accuracy:.4f} on the holdout; {least_accuracy:.4f} is wanted."
        )
    return accuracy


def register(
    run_id: str, model_name: str, dataset_version: str, dataset: str = DATASET, trigger: str = "human"
) -> ModelVersionRef:
    """Register the run's model as `challenger`, with its lineage."""
    registry = Registry()
    champion = registry.find(model_name, "champion")
    lineage = {"semr.dataset.name": dataset, "semr.dataset.version": dataset_version, "semr.trigger": trigger}
    if champion is not None:
        lineage["semr.parent.version"] = champion.version
    return registry.register(run_id, model_name, tags=lineage)


def deploy(model: ModelVersionRef, replicas: int) -> Deployment:
    """Serve the version; the champion stays the champion until `verify`."""
    url = deployment_target().deploy(model, replicas=replicas)
    return Deployment(model, url, replicas)


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


def dataset_version_of(job: JobResult) -> str:
    """Version of the dataset that a job has written, which it left in its MLflow run."""
    from semr import tracking  # noqa: PLC0415 - MLflow takes a second to import

    if job.run_id is None:
        raise SemrError(f"Job {job.job_id} succeeded but left no MLflow run: do Ray and this process use one MLflow?")
    with tracking.named_errors():
        return str(tracking.connect(get_settings()).get_run(job.run_id).data.tags[tracking.DATASET_TAG])


def _metric_of_run(run_id: str, metric: str) -> float:
    from semr import tracking  # noqa: PLC0415

    with tracking.named_errors():
        return float(tracking.connect(get_settings()).get_run(run_id).data.metrics[metric])
