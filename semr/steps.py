"""Steps that the workflows of all examples share: run a job and take its result, register a version, bring it into service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from semr.deployment.choice import deployment_target
from semr.errors import SemrError
from semr.job_entry import config_argument
from semr.jobs import JobResult, RayJobs
from semr.registry import CHAMPION, ModelVersionRef, Registry
from semr.settings import get_settings

DATASET_NAME_TAG = "semr.dataset.name"
DATASET_VERSION_TAG = "semr.dataset.version"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Deployment:
    """A model version in service: its reference, the URL before `/v2`, and its number of replicas."""

    model: ModelVersionRef
    url: str
    replicas: int


def run_job(module: str, config: object, say: Say = print) -> JobResult:
    """Run a job module with its configuration, a dataclass, and pass its log on."""
    return RayJobs().run(module, config_argument(config), on_line=say)


def run_of(job: JobResult) -> str:
    """The MLflow run that a job has left.

    Raises:
        SemrError: it has left none.
    """
    if job.run_id is None:
        raise SemrError(f"Job {job.job_id} succeeded but left no MLflow run: do Ray and this process use one MLflow?")
    return job.run_id


def dataset_version_of(job: JobResult) -> str:
    """Version of the dataset that a job has written, which it left in its MLflow run."""
    from semr import tracking  # noqa: PLC0415 - MLflow takes a second to import

    run_id = run_of(job)
    with tracking.named_errors():
        return str(tracking.connect(get_settings()).get_run(run_id).data.tags[tracking.DATASET_TAG])


def metric_of_run(run_id: str, metric: str) -> float:
    """Last value of a metric of an MLflow run."""
    from semr import tracking  # noqa: PLC0415

    with tracking.named_errors():
        return float(tracking.connect(get_settings()).get_run(run_id).data.metrics[metric])


def artifact_of_run(run_id: str, path: str) -> Any:  # noqa: ANN401 - JSON
    """A JSON artifact of an MLflow run."""
    import mlflow  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415

    with tracking.named_errors():
        tracking.connect()
        return mlflow.artifacts.load_dict(f"runs:/{run_id}/{path}")


def register(
    run_id: str, model_name: str, dataset: str, dataset_version: str, trigger: str = "human"
) -> ModelVersionRef:
    """Register the run's model as `challenger`, with its lineage."""
    registry = Registry()
    champion = registry.find(model_name, CHAMPION)
    lineage = {DATASET_NAME_TAG: dataset, DATASET_VERSION_TAG: dataset_version, "semr.trigger": trigger}
    if champion is not None:
        lineage["semr.parent.version"] = champion.version
    return registry.register(run_id, model_name, tags=lineage)


def deploy(model: ModelVersionRef, replicas: int) -> Deployment:
    """Serve the version; the champion stays the champion until it is verified."""
    url = deployment_target().deploy(model, replicas=replicas)
    return Deployment(model, url, replicas)
