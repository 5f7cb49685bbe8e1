"""Audit records as lines for a person."""

from __future__ import annotations

from datetime import datetime

from semr.evolution.audit import AuditRecord


def timeline_line(record: AuditRecord) -> str:
    """One record in one line: local time, kind, version, and what a person wants to know first."""
    moment = datetime.fromtimestamp(record.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    version = f"v{record.version}" if record.version else ""
    return f"{moment}  {record.kind.replace('_', ' '):<11} {version:<4} {gist(record)}".rstrip()


def gist(record: AuditRecord) -> str:
    """What happened, without time, kind and version."""
    details = record.details
    trigger = details.get("trigger")
    if isinstance(trigger, dict):
        return f"{details.get('action', 'retrain')} by {trigger.get('kind')}: {trigger.get('reason')}"
    if record.kind == "launched":
        return f"{details.get('action', 'retrain')}, launch {record.launch_id}"
    if record.kind == "trained":
        dataset = f"{details.get('dataset', '')} {details.get('dataset_version', '')}"
        return f"run {details.get('run_id', '?')} on {dataset}".rstrip()
    told = [str(details[key]) for key in ("alert", "verdict", "outcome", "reason") if details.get(key)]
    return ": ".join(dict.fromkeys(told))
