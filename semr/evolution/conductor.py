"""Moves launches on: starts those that are queued, notices those that ended, ends those that take too long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from semr.errors import DependencyUnavailableError, InvalidInputError, SemrError
from semr.evolution.launch import Launch, State, failed
from semr.evolution.launcher import Launcher, Sight
from semr.evolution.launches import Ledger, LedgerError

logger = logging.getLogger(__name__)

# A started process claims its launch within a second or two; after this another one is started, and the first claim counts.
CLAIM_SECONDS = 30.0
_MOST_ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass
class _Watch:
    """What this process knows of an active launch, in monotonic seconds, which nobody can set back."""

    first_seen: float
    state: State
    next_try: float = 0.0
    pause: float = _FIRST_PAUSE_SECONDS


@dataclass
class Conductor:
    """Moves the launches of one ledger on; `tick` is called by one thread.

    Attributes:
        ledger: where the launches are.
        retrainer: launcher for retrainings.
        local: launcher for rollbacks.
        problems: what is wrong with the dependencies now, by name; a retraining waits until that is empty.
        claim_seconds: time for a started process to claim its launch.
    """

    ledger: Ledger
    retrainer: Launcher
    local: Launcher
    problems: Callable[[], dict[str, str]]
    claim_seconds: float = CLAIM_SECONDS
    backend_problem: str = ""
    _watches: dict[str, _Watch] = field(default_factory=dict)

    def tick(self) -> None:
        """Move every active launch on by one step.

        Raises:
            LedgerError: the ledger cannot be used.
        """
        active = self.ledger.active()
        now = time.monotonic()
        self._watches = {launch.id: self._watches.get(launch.id, _Watch(now, launch.state)) for launch in active}
        for launch in active:
            watch = self._watches[launch.id]
            if launch.state is not watch.state:
                watch.state, watch.next_try, watch.pause = launch.state, 0.0, _FIRST_PAUSE_SECONDS
            if launch.state is State.RUNNING:
                self._look(launch)
            else:
                self._start(launch)

    def _launcher(self, launch: Launch) -> Launcher:
        return self.local if launch.action == "rollback" else self.retrainer

    def _start(self, launch: Launch) -> None:
        watch = self._watches[launch.id]
        if time.monotonic() < watch.next_try:
            return
        waiting = self._waits_for(launch)
        if waiting:
            self.ledger.note(launch.id, f"waiting: {waiting}")
            return
        launcher = self._launcher(launch)
        if launcher.claims and launch.attempts >= _MOST_ATTEMPTS:
            reason = launch.detail or "no process claimed it"
            self.ledger.finish(launch.id, failed(f"It was started {launch.attempts} times in vain: {reason}"))
            return
        # Written first: a service that is killed from here on finds that a process may exist.
        if not self.ledger.begin_attempt(launch.id):
            return
        watch.state = State.LAUNCHING
        watch.next_try = time.monotonic() + self.claim_seconds
        try:
            launcher.start(launch)
        except DependencyUnavailableError as error:
            self.backend_problem = str(error)
            self._postpone(launch, watch, str(error))
        except InvalidInputError as error:
            self.ledger.finish(launch.id, failed(str(error)))
        except SemrError as error:
            self._postpone(launch, watch, str(error))
        else:
            self.backend_problem = ""
            if not launcher.claims:
                self.ledger.claim(launch.id)

    def _waits_for(self, launch: Launch) -> str:
        """What has to come before the launch may be started, "" for nothing."""
        if launch.action == "rollback":
            return ""
        paused = self.ledger.paused(launch.model)
        # A process may exist from the second attempt on; stopping here would not stop that one.
        if paused is not None and launch.state is State.QUEUED:
            return f"the model is paused ({paused})"
        return "; ".join(f"{name}: {problem}" for name, problem in self.problems().items())

    def _postpone(self, launch: Launch, watch: _Watch, reason: str) -> None:
        logger.warning("launch %s waits: %s", launch.id, reason)
        self.ledger.note(launch.id, f"waiting: {reason}")
        watch.next_try = time.monotonic() + watch.pause
        watch.pause = min(2 * watch.pause, _LONGEST_PAUSE_SECONDS)

    def _look(self, launch: Launch) -> None:
        watch = self._watches[launch.id]
        if time.monotonic() < watch.next_try:
            return
        launcher = self._launcher(launch)
        try:
            progress = launcher.look(launch)
            self.backend_problem = ""
            limit = launch.plan.get("max_run_seconds")
            if progress.sight is Sight.RUNNING and limit is not None and time.monotonic() - watch.first_seen > limit:
                launcher.stop(launch)
                self.ledger.finish(launch.id, failed(f"It took longer than {limit} s and was ended."))
                return
        except LedgerError:
            raise
        except SemrError as error:
            # It may run all the same: nothing is decided until its launcher can be asked again.
            self.backend_problem = str(error)
            self._postpone(launch, watch, str(error))
            return
        if progress.outcome is not None:
            self.ledger.finish(launch.id, progress.outcome)
        elif progress.sight is Sight.LOST:
            # Its process writes the outcome before it ends: one that is gone without is not coming back.
            self.ledger.finish(launch.id, failed("It ended without a result: its process or execution is gone."))
