"""Ray Jobs from the inside: the entry point of a job module, and the MLflow run that carries its result back.

Usage, at the end of a job module::

    if __name__ == "__main__":
        sys.exit(job_main(main, MyConfig))

where `main(config: MyConfig) -> None` does the work and `MyConfig` is a dataclass that travels as JSON in `--config`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from semr.errors import InvalidInputError, SemrError
from semr.jobs import ERROR_MARK, JOB_ID_VARIABLE

Config = TypeVar("Config")

# A third of the weight of what serves. At 10 a step of training, which waits its turn several times, takes ten times longer
# beside a server that keeps the machine busy.
_JOB_NICENESS = 5


def config_argument(config: object) -> list[str]:
    """The command-line arguments that carry the dataclass `config` to a job module."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"a job's configuration is a dataclass instance, not {type(config).__name__}")
    return ["--config", json.dumps(dataclasses.asdict(config))]


def job_main(main: Callable[[Config], None], config_type: type[Config], arguments: list[str] | None = None) -> int:
    """Run `main` with the configuration of the command line and return the exit code of the process.

    An error is written as one marked line that `semr.jobs.JobFailedError` picks up; an unexpected one has its stack trace
    above it, for the log.
    """
    try:
        give_way_to_serving()
        main(_parse(config_type, arguments))
    except SemrError as error:
        _leave_error(error)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last frame of the process: it reports and ends
        traceback.print_exc()
        _leave_error(error)
        return 1
    return 0


def give_way_to_serving() -> None:
    """Lower the priority of this process where it is part of a job: on one machine, a retraining must not slow answers."""
    if JOB_ID_VARIABLE in os.environ:
        os.nice(_JOB_NICENESS)


def join_cluster() -> None:
    """Connect this job to its Ray cluster without Ray's greetings; a job that is connected stays so."""
    import ray  # noqa: PLC0415 - takes seconds, and not every job needs it

    # Ray tells a job's driver where its cluster is, but not the driver's actors, which are lost when a machine has two.
    address = os.environ.get("RAY_ADDRESS")
    environment = {"RAY_ADDRESS": address} if address else {}
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING, runtime_env={"env_vars": environment})
    # It warns that a job's log will have no progress bars.
    logging.getLogger("ray.experimental.tqdm_ray").setLevel(logging.ERROR)


@contextmanager
def tracked_run(experiment: str, name: str, *, system_metrics: bool = False) -> Iterator[str]:
    """An MLflow run that belongs to this job, active inside the block; yields its run id.

    The run carries the job's id as a tag, by which `semr.jobs` finds it. It ends as FAILED when the block raises.

    Args:
        experiment: name of the MLflow experiment, made when missing.
        name: name of the run.
        system_metrics: log CPU, memory, disk and network of this node every two seconds.

    Raises:
        DependencyUnavailableError: MLflow does not answer.
    """
    import mlflow  # noqa: PLC0415 - a job that tracks nothing need not load it

    from semr import tracking  # noqa: PLC0415

    if system_metrics:
        mlflow.set_system_metrics_sampling_interval(2)
    tags = {tracking.JOB_ID_TAG: os.environ.get(JOB_ID_VARIABLE, "none")}
    with tracking.named_errors():
        client = tracking.connect()
        experiment_id = tracking.experiment_id(client, experiment)
        with mlflow.start_run(
            experiment_id=experiment_id, run_name=name, tags=tags, log_system_metrics=system_metrics
        ) as run:
            yield str(run.info.run_id)


def _parse(config_type: type[Config], arguments: list[str] | None) -> Config:
    parser = argparse.ArgumentParser(description=f"A Ray job that takes a {config_type.__name__} as JSON.")
    parser.add_argument("--config", required=True, help="the configuration, a JSON object")
    text = parser.parse_args(arguments).config
    adapter: TypeAdapter[Any] = TypeAdapter(config_type)
    try:
        return adapter.validate_json(text)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InvalidInputError(f"The configuration cannot be used: {where}: {first['msg']}.") from error


def _leave_error(error: BaseException) -> None:
    content = {"type": type(error).__name__, "message": " ".join(str(error).split())[:1000]}
    print(f"{ERROR_MARK}{json.dumps(content)}", file=sys.stderr, flush=True)
