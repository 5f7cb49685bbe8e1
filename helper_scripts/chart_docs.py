#!/usr/bin/env python3
"""Makes values.schema.json and the table of values in README.md of each chart from the comments of its values.yaml.

`# -- text` before a key describes it (further lines go on with `# `). `# @schema {…}` adds to its JSON schema; `{"ref": …}`
takes what is defined here or, for `policy`, what the evolution service checks its policy with. A key whose children are
described is a section; every other key is a value, and must be described. `--check` changes nothing and exits with 1 when a
file is not what it would write.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from semr.evolution.policy import Policy

CHARTS = Path(__file__).resolve().parents[1] / "helm_charts"
BEGIN, END = "<!-- values: begin (helper_scripts/chart_docs.py) -->", "<!-- values: end -->"

_KEY = re.compile(r"^( *)([A-Za-z0-9_.-]+):(?: |$)")
_QUANTITY = {"type": "string", "pattern": r"^[0-9.]+([EPTGMk]i?|m)?$"}
_PROBE_FIELDS = ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold")
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_AMOUNTS = {
    "type": "object",
    "additionalProperties": {"anyOf": [_QUANTITY, {"type": "integer", "minimum": 0}]},
}
DEFINITIONS: dict[str, Any] = {
    "resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS},
    },
    "probe": {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: {"type": "integer", "minimum": 0} for name in _PROBE_FIELDS},
    },
    "workerGroup": {
        "type": "object",
        "additionalProperties": False,
        "required": ["enabled", "resources"],
        "properties": {
            "enabled": {"type": "boolean"},
            "architecture": {"enum": ["", "amd64", "arm64"]},
            "gpus": {"type": "integer", "minimum": 0},
            "minReplicas": {"type": "integer", "minimum": 0},
            "maxReplicas": {"type": "integer", "minimum": 0},
            "resources": {"$ref": "#/definitions/resources"},
            "nodeSelector": _STRINGS,
            "tolerations": _OBJECTS,
            "affinity": {"type": "object"},
        },
    },
    "workerGroups": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$"},
        "additionalProperties": {"$ref": "#/definitions/workerGroup"},
    },
    "endpoint": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "enabled": {"type": "boolean"},
            "host": {"type": "string"},
            "nodePort": {"anyOf": [{"const": 0}, {"type": "integer", "minimum": 30000, "maximum": 32767}]},
        },
    },
}
# Values that mean the same everywhere, by the name of their key.
_BY_NAME: dict[str, Any] = {
    "resources": {"$ref": "#/definitions/resources"},
    "setupResources": {"$ref": "#/definitions/resources"},
    "autoscalerResources": {"$ref": "#/definitions/resources"},
    "startupProbe": {"$ref": "#/definitions/probe"},
    "livenessProbe": {"$ref": "#/definitions/probe"},
    "readinessProbe": {"$ref": "#/definitions/probe"},
    "nodeSelector": _STRINGS,
    "podLabels": _STRINGS,
    "podAnnotations": _STRINGS,
    "annotations": _STRINGS,
    "labels": _STRINGS,
    "label": _STRINGS,
    "controllerNamespaceLabels": _STRINGS,
    "tolerations": _OBJECTS,
    "parentRefs": _OBJECTS,
    "size": _QUANTITY,
    "storageSize": _QUANTITY,
}


class DocsError(Exception):
    """values.yaml cannot be documented as it is."""


@dataclass
class Entry:
    """One key of values.yaml."""

    path: tuple[str, ...]
    default: Any
    text: str
    schema: dict[str, Any]
    children: list[Entry] = field(default_factory=list)


def read_entries(values_file: Path) -> list[Entry]:
    """The described keys of values.yaml as a tree, in the file's order.

    Raises:
        DocsError: a value has no description.
    """
    values = yaml.safe_load(values_file.read_text(encoding="utf-8"))
    roots: list[Entry] = []
    stack: list[tuple[int, Entry]] = []
    comment: list[str] = []
    extra: dict[str, Any] = {}
    # Lines deeper than this belong to a value that has been read.
    value_indent: int | None = None
    lines = values_file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        stripped = line.strip()
        if not stripped:
            comment, extra = [], {}
            continue
        if stripped.startswith("#"):
            body = stripped[1:].strip()
            if body.startswith("@schema "):
                extra = json.loads(body.removeprefix("@schema "))
            elif body.startswith("-- "):
                comment = [body.removeprefix("-- ")]
            elif comment:
                comment.append(body)
            continue
        match = _KEY.match(line)
        indent = len(line) - len(line.lstrip())
        if match is None or (value_indent is not None and indent > value_indent):
            continue
        value_indent = None
        while stack and stack[-1][0] >= indent:
            stack.pop()
        path = (*(stack[-1][1].path if stack else ()), match[2])
        default = values
        for part in path:
            default = default[part]
        entry = Entry(path, default, " ".join(comment), extra)
        comment, extra = [], {}
        (stack[-1][1].children if stack else roots).append(entry)
        if isinstance(default, dict) and _has_described_child(lines, number, indent):
            stack.append((indent, entry))
            continue
        if not entry.text:
            raise DocsError(f"{values_file}: {'.'.join(path)} has no description: put '# -- …' before it.")
        value_indent = indent
    return roots


def _has_described_child(lines: list[str], number: int, indent: int) -> bool:
    """Whether a line below `number` that is deeper than `indent` begins a description."""
    for line in lines[number + 1 :]:
        if not line.strip():
            continue
        if len(line) - len(line.lstrip()) <= indent:
            return False
        if line.strip().startswith("# --"):
            return True
    return False


def schema_of(entries: list[Entry]) -> dict[str, Any]:
    """The JSON schema of a whole values.yaml."""
    properties = {entry.path[-1]: _entry_schema(entry) for entry in entries}
    used = json.dumps(properties)
    wanted: dict[str, Any] = {}
    if "#/definitions/policy" in used:
        wanted.update(policy_definitions())
    for name in ("workerGroups", "workerGroup", "endpoint", "resources", "probe"):
        if f"#/definitions/{name}" in used + json.dumps(wanted):
            wanted[name] = DEFINITIONS[name]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        # Helm hands values under `global` to every chart.
        "properties": {**properties, "global": {"type": "object"}},
        "definitions": wanted,
    }


def policy_definitions() -> dict[str, Any]:
    """The definition `policy`, and those that it refers to, of what semr/evolution/policy.py accepts."""
    whole = Policy.model_json_schema(ref_template="#/definitions/{model}")
    parts = whole.pop("$defs")
    return {"policy": _without_notes(whole), **{name: _without_notes(part) for name, part in parts.items()}}


def _without_notes(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    """Without titles, defaults and texts, which tell what the reader of Python sees; values.yaml has those of its own."""
    if isinstance(schema, list):
        return [_without_notes(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    match schema.get("anyOf"):
        # Helm's message is one line then, not one for each kind. (A list of allowed values would have to name null too.)
        case [{"type": str(kind), **rest}, {"type": "null"}] if "enum" not in rest:
            return {**rest, "type": [kind, "null"]}
    notes = {"title", "default", "description"}
    # Below "properties", the keys are names of values.
    return {
        name: {key: _without_notes(each) for key, each in part.items()}
        if name == "properties"
        else _without_notes(part)
        for name, part in schema.items()
        if name not in notes
    }


def _entry_schema(entry: Entry) -> dict[str, Any]:
    described = {"description": entry.text} if entry.text else {}
    extra = dict(entry.schema)
    reference = extra.pop("ref", None)
    if reference == "endpoints":
        names = [child.path[-1] for child in entry.children]
        endpoint = {"$ref": "#/definitions/endpoint"}
        properties = dict.fromkeys(names, endpoint)
        return {**described, "type": "object", "additionalProperties": False, "properties": properties}
    if reference is not None:
        # draft-07 ignores what stands beside a $ref.
        return {**described, "allOf": [{"$ref": f"#/definitions/{reference}"}]}
    if entry.children:
        if extra.get("additionalProperties") is True:
            # Another chart's values: it knows them best.
            return {**described, "type": "object", "properties": {"enabled": {"type": "boolean"}}}
        properties = {child.path[-1]: _entry_schema(child) for child in entry.children}
        return {**described, "type": "object", "additionalProperties": False, "properties": properties, **extra}
    return {**described, **_value_schema(entry), **extra}


def _value_schema(entry: Entry) -> dict[str, Any]:
    known = _BY_NAME.get(entry.path[-1])
    if known is not None and "$ref" in known:
        return {"allOf": [known]}
    if known is not None:
        return dict(known)
    if "enum" in entry.schema or "type" in entry.schema or "anyOf" in entry.schema:
        return {}
    default = entry.default
    if isinstance(default, list):
        items = {"type": "string"} if not default or isinstance(default[0], str) else {"type": "object"}
        return {"type": "array", "items": items} if not entry.path[-1].startswith("extra") else {"type": "array"}
    # bool before int: it is a kind of int.
    for kind, name in ((bool, "boolean"), (int, "integer"), (str, "string"), (dict, "object")):
        if isinstance(default, kind):
            return {"type": name}
    raise DocsError(f"{'.'.join(entry.path)} has no type: give '# @schema {{\"type\": …}}'.")


def table_of(entries: list[Entry]) -> str:
    """The README's tables: one for each section of the top level, and one for what is in no section."""
    parts = []
    for entry in entries:
        if entry.children:
            heading = f"### `{entry.path[0]}`\n\n" + (f"{entry.text}\n\n" if entry.text else "")
            parts.append(heading + _rows(_leaves(entry)))
    if alone := [entry for entry in entries if not entry.children]:
        parts.append("### Further values\n\n" + _rows(alone))
    return "\n".join(parts)


def _rows(entries: list[Entry]) -> str:
    rows = [
        f"| `{'.'.join(each.path)}` | {_default_text(each.default)} | {each.text.replace('|', chr(92) + '|')} |"
        for each in entries
    ]
    return "\n".join(["| value | default | what it is |", "|---|---|---|", *rows]) + "\n"


def _leaves(entry: Entry) -> list[Entry]:
    return [leaf for child in entry.children for leaf in _leaves(child)] if entry.children else [entry]


def _default_text(default: object) -> str:
    text = json.dumps(default, ensure_ascii=False)
    return f"`{text}`".replace("|", "\\|") if len(text) <= 70 else "see values.yaml"


def main() -> int:
    """Write or check the files of every chart."""
    parser = argparse.ArgumentParser(description="Make values.schema.json and README tables from values.yaml.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a file is out of date")
    check = parser.parse_args().check
    stale = []
    for values_file in sorted(CHARTS.glob("*/values.yaml")):
        try:
            entries = read_entries(values_file)
            schema = json.dumps(schema_of(entries), indent=2, ensure_ascii=False) + "\n"
            table = table_of(entries)
        except DocsError as error:
            print(f"chart_docs: {error}", file=sys.stderr)
            return 1
        readme = values_file.with_name("README.md")
        old = readme.read_text(encoding="utf-8")
        before, _, rest = old.partition(BEGIN)
        _, _, after = rest.partition(END)
        wanted = {
            values_file.with_name("values.schema.json"): schema,
            readme: f"{before}{BEGIN}\n{table}{END}{after}",
        }
        for path, text in wanted.items():
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            stale.append(path)
            if not check:
                path.write_text(text, encoding="utf-8")
    for path in stale:
        name = path.relative_to(CHARTS.parent)
        print(f"chart_docs: {name} {'is out of date: run helper_scripts/chart_docs.py' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
