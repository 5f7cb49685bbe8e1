"""The evolution service as a process: ledger, launchers, threads and HTTP server put together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import uvicorn
from filelock import FileLock, Timeout

from semr.errors import SemrError
from semr.evolution.audit import AuditTrail
from semr.evolution.conductor import CLAIM_SECONDS, Conductor
from semr.evolution.dependencies import Dependencies, dependencies_of
from semr.evolution.intake import Intake
from semr.evolution.launcher import Launcher, LocalLauncher
from semr.evolution.launches import Ledger
from semr.evolution.loops import Loop
from semr.evolution.metrics import EvolutionMetrics
from semr.evolution.policy import Policy, PolicyError, load_policy
from semr.evolution.trigger import ServiceState, create_app
from semr.monitoring.live_data import delete_older_than
from semr.orderly_server import OrderlyServer
from semr.settings import Settings
from semr.storage import ObjectStore

logger = logging.getLogger(__name__)

LEDGER_NAME = "ledger.sqlite"
_LOG_FOLDER = "launches"
_LOCK_SECONDS = 10.0
_TICK_SECONDS = 0.5
_PROBE_SECONDS = 5.0
_SHIP_SECONDS = 2.0
_TIDY_SECONDS = 3600.0
_RECORDS_AT_ONCE = 100


@dataclass(frozen=True)
class ServiceOptions:
    """How the service runs.

    Attributes:
        policy: policy file.
        folder: folder of ledger and logs; one service at a time uses it.
        host: address to listen on.
        port: port to listen on.
        launcher: `local`, `flyte`, or `auto`: Flyte when the contract has an endpoint of it.
        claim_seconds: time for a started process to claim its launch.
    """

    policy: Path
    folder: Path
    host: str = "127.0.0.1"
    port: int = 8500
    launcher: Literal["auto", "local", "flyte"] = "auto"
    claim_seconds: float = CLAIM_SECONDS


def serve(options: ServiceOptions, settings: Settings) -> None:
    """Run the service until the process is told to end; launches under way go on without it.

    Raises:
        SettingsError: a setting is missing, such as the token.
        PolicyError: the policy cannot be used.
        LedgerError: the ledger cannot be used.
        SemrError: another service uses the folder.
    """
    policy = load_policy(options.policy)
    token = settings.need("evolution_token")
    store = ObjectStore.from_settings(settings)
    local, retrainer = _launchers(options, settings, policy)
    options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(options.folder / f"{LEDGER_NAME}.lock", timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise SemrError(f"Another evolution service uses {options.folder}: end it first.") from error
    try:
        _run(options, settings, policy, token, store, local, retrainer)
    finally:
        lock.release()


def ship_records(ledger: Ledger, trail: AuditTrail) -> int:
    """Bring audit records that wait in the ledger into the object store, oldest first; returns how many.

    A record that was stored before a crash, but not forgotten, is stored again under the same key.

    Raises:
        DependencyUnavailableError: the object store does not answer; the rest waits.
    """
    shipped = 0
    while pending := ledger.pending_records(limit=_RECORDS_AT_ONCE):
        for sequence, record in pending:
            trail.put(record)
            ledger.stored(sequence)
            shipped += 1
    return shipped


def delete_old_recordings(policy: Policy, store: ObjectStore) -> int:
    """Delete recorded requests and labels that are older than the policy keeps them; returns how many objects.

    Raises:
        DependencyUnavailableError: the object store does not answer; the rest waits.
    """
    return sum(
        delete_older_than(store, model, each.keep_recordings_days * 86_400) for model, each in policy.models.items()
    )


def _run(
    options: ServiceOptions,
    settings: Settings,
    policy: Policy,
    token: str,
    store: ObjectStore,
    local: Launcher,
    retrainer: Launcher,
) -> None:
    ledger = Ledger(options.folder / LEDGER_NAME)
    trail = AuditTrail(store)
    dependencies = dependencies_of(settings)
    conductor = Conductor(ledger, retrainer, local, lambda: dependencies.problems, options.claim_seconds)
    launching = Loop("launching", _TICK_SECONDS, conductor.tick)
    loops = [
        Loop("probing", _PROBE_SECONDS, dependencies.probe),
        launching,
        Loop("auditing", _SHIP_SECONDS, lambda: ship_records(ledger, trail)),
        Loop("tidying", _TIDY_SECONDS, lambda: delete_old_recordings(policy, store)),
    ]
    state = ServiceState(
        intake=Intake(ledger, policy),
        policy=policy,
        ledger=ledger,
        conductor=conductor,
        dependencies=dependencies,
        metrics=EvolutionMetrics(ledger, policy, lambda: _answering(dependencies, conductor)),
        trail=trail,
        token=token,
        wake=launching.wake,
        stopped_threads=lambda: [loop.name for loop in loops if not loop.is_alive],
        aliases=lambda model: _aliases(settings, model),
    )
    for loop in loops:
        loop.start()
    config = uvicorn.Config(
        create_app(state), host=options.host, port=options.port, log_level="warning", access_log=False
    )
    logger.info("listening on http://%s:%d", options.host, options.port)
    try:
        OrderlyServer(config).run()
    finally:
        for loop in loops:
            loop.stop()


def _launchers(options: ServiceOptions, settings: Settings, policy: Policy) -> tuple[Launcher, Launcher]:
    """The launcher for what runs here, and the one for retrainings."""
    environment = {**settings.contract(), **settings.client_environment()}
    local = LocalLauncher(options.folder / LEDGER_NAME, options.folder / _LOG_FOLDER, environment)
    kind = options.launcher
    if kind == "auto":
        kind = "local" if settings.flyte_endpoint is None else "flyte"
    for model, each in policy.models.items():
        if getattr(each.launch, kind) is None:
            raise PolicyError(
                f"The policy {options.policy} has no launch.{kind} for model {model!r}, which the {kind} launcher needs."
            )
    if kind == "local":
        return local, local
    from semr.evolution.flyte_launcher import FlyteLauncher  # noqa: PLC0415 takes seconds, and only Flyte needs it

    return local, FlyteLauncher(settings)


def _answering(dependencies: Dependencies, conductor: Conductor) -> dict[str, bool]:
    problems = dependencies.problems
    answering = {name: name not in problems for name in dependencies.names}
    return {**answering, "launcher": not conductor.backend_problem}


def _aliases(settings: Settings, model: str) -> dict[str, str]:
    from semr.registry import ModelNotFoundError, Registry  # noqa: PLC0415 imports MLflow, which takes seconds

    try:
        return Registry(settings).aliases(model)
    except ModelNotFoundError:
        return {}
