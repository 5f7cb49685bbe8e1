"""Ray Jobs from the caller's side: submit a Python module, stream its log, wait, get a typed result, cancel.

The other side, what runs inside a job, is `semr.job_entry`. A job's result is the MLflow run that it made, never a pickle.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import re
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semr.errors import DependencyUnavailableError, InvalidInputError, SemrError
from semr.settings import Settings, get_settings

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

JOB_ID_VARIABLE = "SEMR_JOB_ID"
#: A job that fails on purpose ends its log with this mark and a JSON object {"type", "message"}: see `semr.job_entry`.
ERROR_MARK = "semr-job-error:"

# What a job prints by default is for the person who waits for it; a caller's `environment` may ask for more.
_QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DATA_LOG_LEVEL": "WARNING",
    # It would write every line that a training worker prints a second time, as a log record.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # It would watch for machines that are about to be taken away, at the price of one more process.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Ray Data warns of its own use of it.
    "PYTHONWARNINGS": "ignore:`ExecutionOptions.exclude_resources`",
}
# What Ray itself writes into a job's log: that it starts, and that it had to start more processes than the node has cores.
_RAY_LINES = re.compile(
    r"\S+ \S+\tINFO job_manager\.py:\d+ -- "
    r"|Running entrypoint for job "
    r"|\(raylet\) WARNING: \d+ PYTHON worker processes have been started"
)

_SERVICE = "Ray Jobs API"
_POLL_SECONDS = 0.5
_CONNECT_TRIES = 5
# A head that restarts is back within half a minute; a job that cannot be asked for longer is reported as unreachable.
_LOST_SECONDS = 60.0


class JobFailedError(SemrError):
    """A Ray job ended without success.

    Args:
        job_id: submission id of the job.
        status: FAILED or STOPPED.
        reason: the job's own error in one sentence.
        error_type: class name of the error that ended the job, "" when it left none.
    """

    def __init__(self, job_id: str, status: str, reason: str, error_type: str = "") -> None:
        self.job_id = job_id
        self.status = status
        self.reason = reason
        self.error_type = error_type
        super().__init__(f"job {job_id} {status.lower()}: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        return (type(self), (self.job_id, self.status, self.reason, self.error_type))


@dataclass(frozen=True)
class JobResult:
    """A job that succeeded: its submission id, the MLflow run that it made (None if none) and its time in seconds."""

    job_id: str
    run_id: str | None
    seconds: float


@dataclass
class RayJobs:
    """Client of one Ray cluster's Jobs API."""

    settings: Settings = field(default_factory=get_settings)
    _client: JobSubmissionClient | None = field(default=None, repr=False)

    def submit(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        cpus: float = 0,
    ) -> str:
        """Start `python -m module arguments` on the cluster and return its job id at once.

        The module's top-level package travels with the job unless it is installed in this environment's site-packages, so
        that a workflow copied into a folder of one's own runs without building an image.

        Args:
            module: dotted name, importable here.
            arguments: command-line arguments.
            environment: further environment variables of the job.
            cpus: logical CPUs that the entry point itself occupies while it runs; its tasks and actors ask for their own.

        Raises:
            InvalidInputError: `module` cannot be found.
            DependencyUnavailableError: the Jobs API does not answer.
        """
        name = module.rpartition(".")[2]
        job_id = f"{name}-{uuid.uuid4().hex[:8]}"
        runtime_env: dict[str, Any] = {"env_vars": {**_QUIET, **(environment or {}), JOB_ID_VARIABLE: job_id}}
        package = package_to_ship(module)
        if package is not None:
            runtime_env["py_modules"] = [str(package)]
            runtime_env["excludes"] = ["**/__pycache__/"]
        entrypoint = shlex.join(["python", "-m", module, *arguments])
        self._ask(
            lambda client: client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env=runtime_env,
                entrypoint_num_cpus=cpus or None,
                metadata={"semr_module": module},
            )
        )
        return job_id

    def wait(
        self, job_id: str, *, on_line: Callable[[str], None] | None = None, timeout_seconds: float | None = None
    ) -> JobResult:
        """Wait for the end of a job and pass its log on, line by line, while it runs.

        A cluster that is away for less than a minute is waited for. Ctrl-C stops the job before it is raised again
        (as KeyboardInterrupt, or as the SystemExit that flytekit's own signal handler makes of it).

        Raises:
            JobFailedError: the job failed, was stopped, or took longer than `timeout_seconds` (it is stopped then).
            DependencyUnavailableError: the Jobs API did not answer for a minute.
        """
        started = time.monotonic()
        log = _LogFollower(self._connect(), job_id, on_line) if on_line else None
        if log:
            log.start()
        try:
            status, message = self._wait_for_end(job_id, started, timeout_seconds)
        except (KeyboardInterrupt, SystemExit):
            self.cancel(job_id)
            raise
        finally:
            if log:
                log.stop()
        if log:
            log.pass_on_rest(self.logs(job_id))
        if status != "SUCCEEDED":
            raise self._failure(job_id, status, message)
        return JobResult(job_id, self._run_of(job_id), time.monotonic() - started)

    def run(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout_seconds: float | None = None,
    ) -> JobResult:
        """`submit`, then `wait`."""
        job_id = self.submit(module, arguments, environment=environment)
        return self.wait(job_id, on_line=on_line, timeout_seconds=timeout_seconds)

    def logs(self, job_id: str) -> str:
        """The whole log of a job so far."""
        return str(self._ask(lambda client: client.get_job_logs(job_id)))

    def cancel(self, job_id: str) -> None:
        """Ask a job to stop; a job that has ended stays as it is."""
        self._ask(lambda client: client.stop_job(job_id))

    def _wait_for_end(self, job_id: str, started: float, timeout_seconds: float | None) -> tuple[str, str]:
        last_answer = time.monotonic()
        while True:
            try:
                info = self._connect().get_job_info(job_id)
                last_answer = time.monotonic()
            except (OSError, RuntimeError) as error:
                # The client wraps 5xx answers of a restarting head into RuntimeError, refused connections into OSError.
                if time.monotonic() - last_answer > _LOST_SECONDS:
                    raise self._unavailable(error) from error
                time.sleep(_POLL_SECONDS * 2)
                continue
            if info.status.is_terminal():
                return str(info.status.value), info.message or ""
            if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
                self.cancel(job_id)
                raise JobFailedError(job_id, "STOPPED", f"it took longer than {timeout_seconds:g} s")
            time.sleep(_POLL_SECONDS)

    def _failure(self, job_id: str, status: str, message: str) -> JobFailedError:
        error_type, reason = error_in_log(self.logs(job_id))
        return JobFailedError(job_id, status, reason or _one_line(message) or "it left no reason", error_type)

    def _run_of(self, job_id: str) -> str | None:
        if self.settings.mlflow_uri is None:
            return None
        from semr import tracking  # noqa: PLC0415 - MLflow takes a second to import and not every caller has it

        with tracking.named_errors(self.settings):
            return tracking.run_of_job(tracking.connect(self.settings), job_id)

    def _connect(self) -> JobSubmissionClient:
        if self._client is None:
            from ray.job_submission import JobSubmissionClient  # noqa: PLC0415 - Ray takes a second to import

            # It reports the normal end of a log and every upload of a package as news.
            for name in ("job.sdk", "dashboard_sdk"):
                logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
            logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
            token = self.settings.ray_auth_token
            headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else None
            self._client = JobSubmissionClient(self.settings.need("ray_dashboard_url"), headers=headers)
        return self._client

    def _ask(self, call: Callable[[JobSubmissionClient], Any]) -> Any:  # noqa: ANN401 - the client's own types
        """`call` with bounded retries: 0.5 + 1 + 2 + 4 s between five tries."""
        for attempt in range(_CONNECT_TRIES):
            try:
                return call(self._connect())
            except OSError as error:
                if attempt == _CONNECT_TRIES - 1:
                    raise self._unavailable(error) from error
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("unreachable")

    def _unavailable(self, error: Exception) -> DependencyUnavailableError:
        return DependencyUnavailableError(_SERVICE, self.settings.need("ray_dashboard_url"), _one_line(str(error)))


class _LogFollower:
    """Passes a job's log on from a thread of its own; a dropped connection is taken up where it broke off."""

    def __init__(self, client: JobSubmissionClient, job_id: str, on_line: Callable[[str], None]) -> None:
        self._client = client
        self._job_id = job_id
        self._on_line = on_line
        self._passed_on = 0  # characters of the log
        self._rest = ""  # the line that has not ended yet
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._follow, name=f"log of {job_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer: Ray sends the end of a log seconds after the job's end."""
        with suppress(RuntimeError):  # the loop is closed: a callback has raised, and the thread with it
            self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join()

    def pass_on_rest(self, log: str) -> None:
        """After `stop`: pass on what is new in the whole log, an unfinished last line too."""
        self._pass_on(log[self._passed_on :])
        if self._rest:
            self._say(self._rest)
            self._rest = ""

    def _follow(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._tail_again_and_again())
        try:
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _tail_again_and_again(self) -> None:
        while True:
            try:
                await self._tail()
            except (OSError, RuntimeError):
                await asyncio.sleep(_POLL_SECONDS)
            else:
                # The log is complete; or the server went away in order, and then there may be more of it.
                await asyncio.sleep(_POLL_SECONDS * 4)

    async def _tail(self) -> None:
        position = 0  # a new tail starts at the beginning of the log
        async with aclosing(self._client.tail_job_logs(self._job_id)) as chunks:
            async for chunk in chunks:
                self._pass_on(chunk[max(0, self._passed_on - position) :])
                position += len(chunk)

    def _pass_on(self, fresh: str) -> None:
        self._passed_on += len(fresh)
        *lines, self._rest = (self._rest + fresh).split("\n")
        for line in lines:
            self._say(line)

    def _say(self, line: str) -> None:
        if not _RAY_LINES.match(line):
            self._on_line(line)


def package_to_ship(module: str) -> Path | None:
    """Folder of the top-level package of `module`, None when it is installed and so present on the cluster.

    Raises:
        InvalidInputError: no such module.
    """
    try:
        found = importlib.util.find_spec(module)
        top = importlib.util.find_spec(module.partition(".")[0])
    except ModuleNotFoundError:
        found = top = None
    if found is None or top is None:
        raise InvalidInputError(
            f"There is no Python module {module!r}: name one that can be imported from here, such as "
            "workflow_examples.mnist.train."
        )
    if not top.submodule_search_locations:
        return None
    folder = Path(next(iter(top.submodule_search_locations)))
    is_installed = "site-packages" in folder.parts or folder.is_relative_to(sys.base_prefix)
    return None if is_installed or folder.name == "semr" else folder


def error_in_log(log: str) -> tuple[str, str]:
    """Type and message of the error that a job left at the end of its log; ("", "") when it left none."""
    for line in reversed(log.splitlines()):
        _, mark, rest = line.partition(ERROR_MARK)
        if mark:
            try:
                content = json.loads(rest)
            except json.JSONDecodeError:
                continue
            return str(content.get("type", "")), str(content.get("message", ""))
    return "", ""


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
