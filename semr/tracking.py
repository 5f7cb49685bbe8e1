"""MLflow tracking: one place that points the MLflow client at the contract's server and names its failures."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from semr.errors import DependencyUnavailableError
from semr.settings import Settings, get_settings

JOB_ID_TAG = "semr.job_id"
DATASET_TAG = "semr.dataset.version"

# MLflow's own defaults (7 retries, factor 2, 120 s a try) keep a caller waiting for minutes when the server is away.
# These bound it: 1 + 2 + 4 + 8 s of back-off between five tries, in which a server can start again; 30 s for an answer.
_CLIENT_LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.5",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # "View run at ..." and progress bars belong to a terminal, not to a job's log.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def connect(settings: Settings | None = None) -> MlflowClient:
    """Point this process's MLflow at the contract's server and return a client for it.

    Limits that the caller has set in the environment are kept.

    Raises:
        SettingsError: `SEMR_MLFLOW_URI` is not set.
    """
    uri = (settings or get_settings()).need("mlflow_uri")
    for name, value in {**_CLIENT_LIMITS, **_QUIET}.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return MlflowClient(uri, uri)


@contextmanager
def named_errors(settings: Settings | None = None) -> Iterator[None]:
    """Turn "the server did not answer" inside the block into `DependencyUnavailableError`; let other errors through.

    MLflow reports an unreachable server as `MlflowException` with the connection error in its text or as its cause, and a
    server that lost its own object store as a 5xx answer.
    """
    try:
        yield
    except requests.exceptions.RequestException as error:
        raise _unavailable(error, settings) from error
    except MlflowException as error:
        text = str(error)
        status = error.get_http_status_code()
        unreachable = "Max retries exceeded" in text or "API request to" in text or "Connection" in text
        if unreachable or (status >= 500 and "HTTP" in text.upper()):
            raise _unavailable(error, settings) from error
        raise


def experiment_id(client: MlflowClient, name: str) -> str:
    """Id of the experiment `name`, made when missing; safe when two callers make it at once."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def run_of_job(client: MlflowClient, job_id: str) -> str | None:
    """Id of the newest run that the Ray job `job_id` made, None when it made none."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(
        experiments,
        filter_string=f"tags.`{JOB_ID_TAG}` = '{job_id}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return str(runs[0].info.run_id) if runs else None


def _unavailable(error: Exception, settings: Settings | None) -> DependencyUnavailableError:
    uri = (settings or get_settings()).need("mlflow_uri")
    reason = " ".join(str(error).split())
    return DependencyUnavailableError("MLflow", uri, reason[:300])
