"""Rules on fast-forward: the same rules with every duration divided, for demonstrations and tests.

Numbers of rows and thresholds stay: what takes minutes of traffic then takes seconds of more traffic.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from semr.errors import InvalidInputError

_MILLISECONDS = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
    "y": 31_536_000_000,
}
_UNIT = r"(?:ms|[smhdwy])"
_DURATION = rf"(?:[0-9]+{_UNIT})+"
_DURATION_PART = re.compile(rf"([0-9]+)({_UNIT})")
# Text in quotes and comments come first, so that what looks like a duration in them stays.
_IN_EXPRESSION = re.compile(
    rf"""(?P<kept>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`|\#[^\n]*)"""
    rf"""|(?P<range>\[\s*{_DURATION}\s*(?::\s*(?:{_DURATION})?\s*)?\])"""
    rf"""|(?P<offset>\boffset\s+-?\s*{_DURATION})""",
    re.IGNORECASE,
)


def compress(rules: str, factor: float) -> str:
    """A rules file of Prometheus (YAML) with every range, offset, interval and waiting time divided by `factor`.

    A duration becomes at least a millisecond, the shortest that Prometheus knows. Comments are lost.

    Raises:
        InvalidInputError: the factor is not above 0, or this is not a rules file.
    """
    if not 0 < factor < float("inf"):
        raise InvalidInputError(f"Time cannot be compressed by {factor}: the factor has to be a number above 0.")
    try:
        content = yaml.safe_load(rules)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"The rules are not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("groups"), list):
        raise InvalidInputError("This is not a rules file of Prometheus: it has no list `groups`.")
    for group in content["groups"]:
        _compress_keys(group, ("interval", "query_offset"), factor)
        for rule in group.get("rules") or []:
            _compress_keys(rule, ("for", "keep_firing_for"), factor)
            rule["expr"] = _compress_expression(str(rule["expr"]), factor)
    return yaml.safe_dump(content, sort_keys=False, width=1000)


def _compress_keys(mapping: dict[str, Any], keys: tuple[str, ...], factor: float) -> None:
    for key in keys:
        if key in mapping:
            mapping[key] = _compress_durations(str(mapping[key]), factor)


def _compress_expression(expression: str, factor: float) -> str:
    def replace(match: re.Match[str]) -> str:
        return match[0] if match["kept"] is not None else _compress_durations(match[0], factor)

    return _IN_EXPRESSION.sub(replace, expression)


def _compress_durations(text: str, factor: float) -> str:
    def replace(match: re.Match[str]) -> str:
        whole = sum(int(number) * _MILLISECONDS[unit] for number, unit in _DURATION_PART.findall(match[0]))
        return "0s" if whole == 0 else f"{max(1, round(whole / factor))}ms"

    return re.sub(_DURATION, replace, text)
