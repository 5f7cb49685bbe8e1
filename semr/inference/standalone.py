"""The alone host: the application on uvicorn, in one process or several that share a listening socket."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import uvicorn

from semr.errors import InvalidInputError
from semr.inference.access_log import AccessLog
from semr.inference.app import create_app
from semr.inference.following import Follower
from semr.inference.holder import ModelHolder
from semr.inference.metrics import PrometheusSink, ServerMetrics
from semr.inference.options import ServerOptions
from semr.inference.runtime import LoadedModel, load, load_version, threads
from semr.inference.service import ServerState
from semr.inference.source import ModelSource
from semr.inference.worker_metrics import WorkerMetrics
from semr.monitoring.observer import Observer
from semr.orderly_server import SIGNALS, OrderlyServer
from semr.settings import Settings
from semr.storage import ObjectStore

logger = logging.getLogger(__name__)

# Clients keep connections for about a minute; one that the server closes first can cost a request that is just being sent.
_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 2048
_POLL_SECONDS = 0.2
# A process that ends within this time of its start is started again only after as long: it would probably end again.
_RESTART_SECONDS = 2.0
# Beyond the time for requests in flight, for what is recorded in the end.
_CLOSE_SECONDS = 20.0


@dataclass(frozen=True)
class HostConfig:
    """What the command line says.

    Attributes:
        source: the model.
        options: of each process.
        settings: the contract.
        poll_seconds: between two looks at the alias, None when it is not followed.
        workers: number of processes.
    """

    source: ModelSource
    options: ServerOptions
    settings: Settings
    poll_seconds: float | None
    workers: int


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        InvalidInputError: nobody can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise InvalidInputError(f"The server cannot listen on {host}:{port}: {error}.") from error
    listener.setblocking(False)
    return listener


def serve(config: HostConfig, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight."""
    if config.workers == 1:
        _serve_in_process(config, listener, None)
    else:
        _supervise(config, listener)


def _serve_in_process(config: HostConfig, listener: socket.socket, worker: tuple[Path, int] | None) -> None:
    options = config.options
    sink = PrometheusSink()
    shared = WorkerMetrics(*worker, sink.render) if worker is not None else None
    metrics = ServerMetrics([sink])
    observer = _observer(config, metrics)
    holder = ModelHolder(config.source.name, metrics, watched_by=observer, loader=partial(_load, config))
    state = ServerState(holder, sink, options, shared.render_all if shared else None)
    access_log = AccessLog() if options.access_log else None
    follower = Follower(holder, config.source, config.settings, config.poll_seconds)
    app = create_app(lambda: state, extensions=options.extensions, access_log=access_log)
    uvicorn_config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(options.grace_s)),
    )
    follower.start()
    try:
        OrderlyServer(uvicorn_config).run(sockets=[listener])
    finally:
        follower.close()
        observer.close()
        if access_log is not None:
            access_log.close()
        if shared is not None:
            shared.close()


def _load(config: HostConfig, version: str) -> LoadedModel:
    if config.source.selector is None:
        return load_version(config.source.unregistered, config.settings, config.options)
    return load(config.source.name, version, config.settings, config.options)


def _observer(config: HostConfig, metrics: ServerMetrics) -> Observer:
    if config.source.selector is not None:
        return Observer.from_settings(config.source.name, metrics.sinks, config.settings)
    # A model that is not registered has no training run to be measured against.
    store = ObjectStore.from_settings(config.settings) if config.settings.object_store_endpoint else None
    return Observer(config.source.name, metrics.sinks, store=store)


def _supervise(config: HostConfig, listener: socket.socket) -> None:
    """Keep `config.workers` processes running; on a signal end them and wait."""
    stopped = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        stopped.set()

    for each in SIGNALS:
        signal.signal(each, stop)
    cores = config.options.threads or threads.available_cores()
    share = replace(config, options=config.options.model_copy(update={"threads": max(1, cores // config.workers)}))
    with tempfile.TemporaryDirectory(prefix="semr-") as name:
        workers = [_Worker(share, listener, Path(name), index) for index in range(config.workers)]
        try:
            while not stopped.wait(_POLL_SECONDS):
                for worker in workers:
                    worker.tend()
        finally:
            for worker in workers:
                worker.terminate()
            deadline = time.monotonic() + config.options.grace_s + _CLOSE_SECONDS
            for worker in workers:
                worker.join(deadline)


class _Worker:
    """A process of the server, started again when it ends."""

    def __init__(self, config: HostConfig, listener: socket.socket, folder: Path, index: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (config, listener, (folder, index), os.getpid())
        self._index = index
        self._process = self._start()

    def _start(self) -> BaseProcess:
        self._started = time.monotonic()
        process = self._context.Process(target=_run_worker, args=self._arguments, name=f"semr-inference-{self._index}")
        process.start()
        return process

    def tend(self) -> None:
        """Start the process again if it has ended, at most every two seconds."""
        if self._process.is_alive() or time.monotonic() - self._started < _RESTART_SECONDS:
            return
        logger.error("worker %d ended with %s; it is started again", self._index, self._process.exitcode)
        self._process = self._start()

    def terminate(self) -> None:
        """Tell it to stop."""
        if self._process.is_alive():
            self._process.terminate()

    def join(self, deadline: float) -> None:
        """Wait for its end; one that is not done by `deadline` of `time.monotonic` is killed."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            logger.error("worker %d does not stop; it is killed", self._index)
            self._process.kill()
            self._process.join()


def _run_worker(config: HostConfig, listener: socket.socket, worker: tuple[Path, int], parent: int) -> None:
    set_up_logging()
    threading.Thread(target=_end_with, args=(parent,), name="semr-parent", daemon=True).start()
    _serve_in_process(config, listener, worker)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed stops by itself: nobody else would tell it to."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def set_up_logging() -> None:
    """Messages of this package to standard error; standard output is the access log's."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("semr").setLevel(logging.INFO)
