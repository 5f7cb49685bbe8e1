"""The ledger: launches, alerts, pauses and audit records that still have to be stored, in one SQLite file.

What is decided is written here before anything is done about it, in one transaction with its audit record. The service and
the processes of local launches write to the same file. Three constraints, not the care of callers, make a launch happen once:
a model has at most one active launch (unique index), a launch is claimed by at most one process (`claim`), and it ends once
(`finish`).
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semr.errors import SemrError
from semr.evolution.audit import AuditRecord, Kind
from semr.evolution.launch import ACTIVE, Action, Launch, Outcome, State, Trigger, new_launch_id

# A writer waits so long for another one; transactions take milliseconds.
_BUSY_SECONDS = 30.0
_DAY_SECONDS = 86_400.0
# Alertmanager re-sends what fires every few hours at most; after this an episode is over.
_EPISODE_SECONDS = 30 * _DAY_SECONDS
_ACTIVE_STATES = ", ".join(f"'{state.value}'" for state in ACTIVE)

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS models (
    model TEXT PRIMARY KEY,
    paused TEXT,                      -- reason; NULL when it is not paused
    epoch INTEGER NOT NULL DEFAULT 0  -- counts what makes a skipped alert worth another record
);
CREATE TABLE IF NOT EXISTS launches (
    id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    action TEXT NOT NULL,
    state TEXT NOT NULL,
    is_active INTEGER GENERATED ALWAYS AS (state IN ({_ACTIVE_STATES})) VIRTUAL,
    plan TEXT NOT NULL,
    inputs TEXT NOT NULL,
    trigger TEXT NOT NULL,
    version TEXT,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    counted_from REAL NOT NULL,       -- `created` for the daily budget
    cooled_from REAL NOT NULL,        -- `finished` for the cooldown
    attempts INTEGER NOT NULL DEFAULT 0,
    pid INTEGER,
    detail TEXT NOT NULL DEFAULT '',
    outcome TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS one_active_launch ON launches (model) WHERE is_active = 1;
CREATE TABLE IF NOT EXISTS episodes (
    model TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    starts_at TEXT NOT NULL,
    last_seen REAL NOT NULL,
    launch_id TEXT,
    resolved INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (model, fingerprint, starts_at)
);
CREATE TABLE IF NOT EXISTS skips (
    model TEXT NOT NULL,
    alert TEXT NOT NULL,
    version TEXT NOT NULL,
    reason TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (model, alert, version, reason)
);
CREATE TABLE IF NOT EXISTS outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    record TEXT NOT NULL
);
"""


class LedgerError(SemrError):
    """The ledger's file cannot be used; the message tells SQLite's reason."""


class Ledger:
    """One SQLite file; an instance may be used by several threads, every method may raise `LedgerError`.

    Args:
        path: the file; made with its folder when missing.
        clock: seconds since the epoch.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.clock = clock
        self._lock = threading.RLock()
        self._depth = 0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            # The answer to Alertmanager promises that a launch survives: also a loss of power.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"The ledger {path} cannot be opened: {error}.") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is done inside; may be nested, the outermost one commits."""
        with self._lock:
            if self._depth:
                yield
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise LedgerError(f"The ledger {self.path} cannot be written: {error}.") from error
            self._depth = 1
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise LedgerError(f"The ledger {self.path} cannot be written: {error}.") from error
                raise
            finally:
                self._depth = 0

    # Launches

    def create(
        self,
        model: str,
        action: Action,
        trigger: Trigger,
        *,
        plan: dict[str, Any],
        inputs: dict[str, Any],
        version: str | None = None,
    ) -> Launch:
        """Decide a launch: it is queued, with its audit record; `launch_id` and `trigger` are added to its inputs.

        Raises:
            LedgerError: the model has an active launch (callers ask `active_launch` in the same transaction).
        """
        launch_id = new_launch_id()
        complete = {**inputs, "model_name": model, "launch_id": launch_id, "trigger": trigger.to_json()}
        with self.transaction():
            now = self.clock()
            self._execute(
                "INSERT INTO launches (id, model, action, state, plan, inputs, trigger, version, created, counted_from,"
                " cooled_from) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *(launch_id, model, action, State.QUEUED.value, json.dumps(plan), json.dumps(complete)),
                *(trigger.to_json(), version, now, now, now),
            )
            alert = {"alert": trigger.labels["alertname"]} if "alertname" in trigger.labels else {}
            details = {"action": action, "reason": trigger.reason, "trigger": json.loads(trigger.to_json()), **alert}
            self.record(model, "triggered", launch_id=launch_id, version=version or "", details=details)
            self.next_epoch(model)
            return self.get(launch_id)

    def get(self, launch_id: str) -> Launch:
        """The launch with this id.

        Raises:
            LedgerError: there is none.
        """
        found = self.find(launch_id)
        if found is None:
            raise LedgerError(f"The ledger {self.path} has no launch {launch_id}.")
        return found

    def find(self, launch_id: str) -> Launch | None:
        """Like `get`, but None when there is none."""
        return next(iter(self._launches("WHERE id = ?", launch_id)), None)

    def active(self) -> list[Launch]:
        """All active launches, oldest first."""
        return self._launches("WHERE is_active = 1 ORDER BY created, id")

    def active_launch(self, model: str) -> Launch | None:
        """The active launch of `model`."""
        return next(iter(self._launches("WHERE model = ? AND is_active = 1", model)), None)

    def launches(self, model: str, limit: int = 100) -> list[Launch]:
        """Launches of `model`, newest first."""
        return self._launches("WHERE model = ? ORDER BY created DESC, rowid DESC LIMIT ?", model, limit)

    def begin_attempt(self, launch_id: str) -> bool:
        """Note that a launcher is about to be told; False when the launch is no longer waiting for that."""
        return self._changed(
            "UPDATE launches SET state = ?, attempts = attempts + 1 WHERE id = ? AND state IN (?, ?)",
            *(State.LAUNCHING.value, launch_id, State.QUEUED.value, State.LAUNCHING.value),
        )

    def claim(self, launch_id: str, pid: int | None = None) -> Launch | None:
        """Take the launch for the calling process (or for the Flyte execution of its name); None when it is taken or over."""
        with self.transaction():
            taken = self._changed(
                "UPDATE launches SET state = ?, pid = ?, started = ?, detail = '' WHERE id = ? AND state IN (?, ?)",
                *(State.RUNNING.value, pid, self.clock(), launch_id, State.QUEUED.value, State.LAUNCHING.value),
            )
            if not taken:
                return None
            launch = self.get(launch_id)
            inputs = {name: value for name, value in launch.inputs.items() if name != "trigger"}
            details = {"action": launch.action, "plan": launch.plan, "inputs": inputs}
            self.record(launch.model, "launched", launch_id=launch_id, version=launch.version or "", details=details)
            return launch

    def finish(self, launch_id: str, outcome: Outcome) -> bool:
        """End the launch; False when it had ended before, which changes nothing.

        A retraining's workflow has recorded its verdict itself, with all that led to it; failures are recorded here.
        """
        with self.transaction():
            now = self.clock()
            ended = self._changed(
                "UPDATE launches SET state = ?, finished = ?, cooled_from = ?, detail = ?, outcome = ?"
                " WHERE id = ? AND is_active = 1",
                *(outcome.state.value, now, now, outcome.reason, json.dumps(outcome.to_dict()), launch_id),
            )
            if not ended:
                return False
            launch = self.get(launch_id)
            details = {"action": launch.action, **outcome.to_dict()}
            if outcome.state is State.FAILED:
                self.record(launch.model, "failed", launch_id=launch_id, version=launch.version or "", details=details)
            elif launch.action == "rollback":
                restored = outcome.champion_version or ""
                self.record(launch.model, "rolled_back", launch_id=launch_id, version=restored, details=details)
            self.next_epoch(launch.model)
            return True

    def note(self, launch_id: str, detail: str) -> None:
        """Write down what an active launch waits for."""
        self._changed(
            "UPDATE launches SET detail = ? WHERE id = ? AND detail <> ? AND is_active = 1", detail, launch_id, detail
        )

    def counts(self) -> list[tuple[str, str, str, int]]:
        """Number of launches by model, action and state."""
        rows = self._rows("SELECT model, action, state, COUNT(*) FROM launches GROUP BY model, action, state")
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    # Limits

    def seconds_since_last(self, model: str) -> float | None:
        """Time since the last launch of `model` ended, None when there was none.

        A time in the future (the clock was set back) counts as now, from now on: the wait starts again, and is never longer
        than that.
        """
        with self.transaction():
            now = self._no_future(model)
            row = self._row("SELECT MAX(cooled_from) FROM launches WHERE model = ? AND is_active = 0", model)
            return None if row[0] is None else now - float(row[0])

    def retrainings_within_a_day(self, model: str) -> int:
        """Retrainings of `model` decided within the last 24 hours; times in the future as in `seconds_since_last`."""
        with self.transaction():
            now = self._no_future(model)
            row = self._row(
                "SELECT COUNT(*) FROM launches WHERE model = ? AND action = 'retrain' AND counted_from > ?",
                *(model, now - _DAY_SECONDS),
            )
            return int(row[0])

    # Pauses

    def pause(self, model: str, reason: str) -> bool:
        """Let nothing be launched for `model`; False when it is paused already."""
        return self._set_paused(model, reason, "paused")

    def resume(self, model: str, reason: str) -> bool:
        """End the pause of `model`; False when there is none."""
        return self._set_paused(model, reason, "resumed")

    def paused(self, model: str) -> str | None:
        """Why `model` is paused, None when it is not."""
        rows = self._rows("SELECT paused FROM models WHERE model = ?", model)
        return rows[0][0] if rows else None

    # Alerts

    def see_episode(self, model: str, fingerprint: str, starts_at: str) -> tuple[str | None, bool]:
        """Note that an alert fires, known by its fingerprint and start; returns the launch that answered it and whether it
        had been resolved (Alertmanager may deliver out of order)."""
        with self.transaction():
            now = self.clock()
            key = (model, fingerprint, starts_at)
            self._execute(
                "INSERT INTO episodes (model, fingerprint, starts_at, last_seen) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET last_seen = excluded.last_seen",
                *(*key, now),
            )
            row = self._row(
                "SELECT launch_id, resolved FROM episodes WHERE model = ? AND fingerprint = ? AND starts_at = ?", *key
            )
            return row[0], bool(row[1])

    def answer_episode(self, model: str, fingerprint: str, starts_at: str, launch_id: str) -> None:
        """Note that the launch answers the alert."""
        self._execute(
            "UPDATE episodes SET launch_id = ? WHERE model = ? AND fingerprint = ? AND starts_at = ?",
            *(launch_id, model, fingerprint, starts_at),
        )

    def resolve_episode(self, model: str, fingerprint: str, starts_at: str) -> None:
        """Note that the alert has ended, and forget those not heard of for a long time."""
        with self.transaction():
            self.see_episode(model, fingerprint, starts_at)
            self._execute(
                "UPDATE episodes SET resolved = 1 WHERE model = ? AND fingerprint = ? AND starts_at = ?",
                *(model, fingerprint, starts_at),
            )
            self._execute("DELETE FROM episodes WHERE last_seen < ?", self.clock() - _EPISODE_SECONDS)

    def skip(self, model: str, alert: str, version: str | None, reason: str, details: dict[str, Any]) -> None:
        """Record that an alert launches nothing: once for each reason until a launch or a pause changes the situation."""
        with self.transaction():
            epoch = self._epoch(model)
            is_news = self._changed(
                "INSERT INTO skips VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET epoch = excluded.epoch"
                " WHERE epoch <> excluded.epoch",
                *(model, alert, version or "", reason, epoch),
            )
            if is_news:
                self.record(model, "skipped", version=version or "", details={"reason": reason, **details})

    def is_replaced(self, model: str, version: str) -> bool:
        """Whether `version` is out of service as far as the last verdict tells: what it took back, or older than its champion.

        Rules look back over a window, so that alerts about a version come for some time after it was replaced.
        """
        verdicts = self._launches(
            "WHERE model = ? AND json_extract(outcome, '$.champion_version') IS NOT NULL"
            " ORDER BY created DESC, rowid DESC LIMIT 1",
            model,
        )
        if not verdicts or verdicts[0].outcome is None:
            return False
        champion, challenger = verdicts[0].outcome.champion_version, verdicts[0].outcome.challenger_version
        if champion is None or version == champion:
            return False
        return version == challenger or (version.isdigit() and champion.isdigit() and int(version) < int(champion))

    # Audit records on their way to the object store

    def record(
        self, model: str, kind: Kind, *, launch_id: str = "", version: str = "", details: dict[str, Any] | None = None
    ) -> None:
        """Queue an audit record of now, in the transaction of what it tells about."""
        record = AuditRecord(self.clock(), model, kind, launch_id, version, details or {})
        self._execute("INSERT INTO outbox (model, record) VALUES (?, ?)", model, record.to_json())

    def pending_records(self, model: str | None = None, limit: int = 1000) -> list[tuple[int, AuditRecord]]:
        """Records that are not stored yet (of `model`, or all), oldest first, with their sequence numbers."""
        rows = self._rows(
            "SELECT sequence, record FROM outbox WHERE model = COALESCE(?, model) ORDER BY sequence LIMIT ?",
            model,
            limit,
        )
        return [(row[0], AuditRecord.from_json(row[1])) for row in rows]

    def pending_count(self) -> int:
        """Number of records that are not stored yet."""
        return int(self._row("SELECT COUNT(*) FROM outbox")[0])

    def stored(self, sequence: int) -> None:
        """Forget a record that the object store has."""
        self._execute("DELETE FROM outbox WHERE sequence = ?", sequence)

    def next_epoch(self, model: str) -> None:
        """Make what is skipped from now on worth a new record."""
        self._execute(
            "INSERT INTO models (model, epoch) VALUES (?, 1) ON CONFLICT DO UPDATE SET epoch = epoch + 1", model
        )

    def _set_paused(self, model: str, reason: str, kind: Kind) -> bool:
        with self.transaction():
            if (self.paused(model) is not None) == (kind == "paused"):
                return False
            self.next_epoch(model)
            self._execute("UPDATE models SET paused = ? WHERE model = ?", reason if kind == "paused" else None, model)
            self.record(model, kind, details={"reason": reason})
            return True

    def _epoch(self, model: str) -> int:
        rows = self._rows("SELECT epoch FROM models WHERE model = ?", model)
        return int(rows[0][0]) if rows else 0

    def _no_future(self, model: str) -> float:
        now = self.clock()
        self._execute(
            "UPDATE launches SET counted_from = MIN(counted_from, ?1), cooled_from = MIN(cooled_from, ?1)"
            " WHERE model = ?2 AND (counted_from > ?1 OR cooled_from > ?1)",
            *(now, model),
        )
        return now

    def _launches(self, where: str, *values: object) -> list[Launch]:
        return [_launch(row) for row in self._rows(f"SELECT * FROM launches {where}", *values)]  # noqa: S608 own text

    def _changed(self, statement: str, *values: object) -> bool:
        return self._execute(statement, *values).rowcount > 0

    def _row(self, statement: str, *values: object) -> sqlite3.Row:
        return self._rows(statement, *values)[0]

    def _rows(self, statement: str, *values: object) -> Sequence[sqlite3.Row]:
        with self._lock:
            try:
                rows: list[sqlite3.Row] = self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise LedgerError(f"The ledger {self.path} cannot be read: {error}.") from error
            return rows

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        with self._lock:
            try:
                return self._connection.execute(statement, values)
            except sqlite3.Error as error:
                raise LedgerError(f"The ledger {self.path} cannot be written: {error}.") from error


def _launch(row: sqlite3.Row) -> Launch:
    outcome = json.loads(row["outcome"]) if row["outcome"] else None
    state = State(row["state"])
    return Launch(
        id=row["id"],
        model=row["model"],
        action=row["action"],
        state=state,
        plan=json.loads(row["plan"]),
        inputs=json.loads(row["inputs"]),
        trigger=Trigger.from_json(row["trigger"]),
        version=row["version"],
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        attempts=row["attempts"],
        pid=row["pid"],
        detail=row["detail"],
        outcome=None
        if outcome is None
        else Outcome(state, outcome["reason"], outcome["challenger_version"], outcome["champion_version"]),
    )
