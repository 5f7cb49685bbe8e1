"""The audit trail on a real object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.evolution.audit import AuditRecord, AuditTrail
from semr.evolution.launches import Ledger
from semr.evolution.service import ship_records
from semr.evolution.timeline import timeline_line
from semr.settings import Settings
from semr.storage import ObjectStore


def test_records_come_back_in_the_order_of_their_times(store: ObjectStore) -> None:
    trail = AuditTrail(store)
    assert trail.records("mnist") == []
    late = trail.append("mnist", "promoted", launch_id="e1", version="2", details={"reason": "better"}, time=20.000002)
    early = trail.append("mnist", "triggered", time=20.000001)
    other = trail.append("mnist-2", "paused")
    assert trail.records("mnist") == [early, late] and trail.records("mnist-2") == [other]
    assert trail.records("mnist", limit=1) == [late]
    assert late.key == f"audit/mnist/19700101T000020.000002Z-{late.id}.json"


def test_storing_a_record_again_does_not_double_it(store: ObjectStore) -> None:
    trail = AuditTrail(store)
    record = AuditRecord(1.0, "mnist", "skipped")
    trail.put(record)
    trail.put(record)
    assert trail.records("mnist") == [record]


def test_wrong_names_and_kinds_are_refused(store: ObjectStore) -> None:
    trail = AuditTrail(store)
    for model in ("", "a/b", "..", "a b"):
        with pytest.raises(InvalidInputError, match="cannot name a model"):
            trail.append(model, "paused")
    with pytest.raises(InvalidInputError, match="'eaten' is not a kind of audit record"):
        trail.append("mnist", "eaten")  # type: ignore[arg-type]


def test_a_store_that_is_away_is_named(unused_port: int) -> None:
    settings = Settings(
        object_store_endpoint=f"http://127.0.0.1:{unused_port}",
        object_store_access_key="a",
        object_store_secret_key="b",
    )
    with pytest.raises(DependencyUnavailableError, match="object store"):
        AuditTrail(ObjectStore.from_settings(settings)).append("mnist", "paused")


def test_records_wait_in_the_ledger_until_the_store_is_back(
    store: ObjectStore, tmp_path: Path, unused_port: int
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for reason in ("first", "second"):
        ledger.record("mnist", "skipped", details={"reason": reason})
    away = Settings(
        object_store_endpoint=f"http://127.0.0.1:{unused_port}",
        object_store_access_key="a",
        object_store_secret_key="b",
    )
    with pytest.raises(DependencyUnavailableError):
        ship_records(ledger, AuditTrail(ObjectStore.from_settings(away)))
    assert ledger.pending_count() == 2
    # Stored, and killed before the ledger forgot it.
    trail = AuditTrail(store)
    trail.put(ledger.pending_records()[0][1])
    assert ship_records(ledger, trail) == 2
    assert [record.details["reason"] for record in trail.records("mnist")] == ["first", "second"]
    assert ledger.pending_count() == 0


def test_a_record_as_a_line() -> None:
    trigger = {"kind": "alert", "reason": "inputs have drifted"}
    line = timeline_line(AuditRecord(0.0, "mnist", "triggered", "e1", "3", {"trigger": trigger, "action": "retrain"}))
    assert line.endswith("triggered   v3   retrain by alert: inputs have drifted")
    line = timeline_line(AuditRecord(0.0, "mnist", "rolled_back", "e1", "3", {"reason": "worse"}))
    assert line.endswith("rolled back v3   worse")
