"""Values, their documentation and their schema are one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_tools import CHARTS, ROOT

TOOL = ROOT / "helper_scripts" / "chart_docs.py"


def test_tables_and_schemas_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import chart_docs

    return chart_docs


def test_a_value_without_description_is_refused(tool: Any, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("# -- A section.\nserver:\n  # -- Port.\n  port: 80\n  host: x\n")
    with pytest.raises(tool.DocsError, match=r"server\.host has no description"):
        tool.read_entries(values)


def test_drift_is_seen(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chart = tmp_path / "chart"
    chart.mkdir()
    (chart / "values.yaml").write_text("# -- Port.\nport: 80\n")
    (chart / "README.md").write_text(f"before\n{tool.BEGIN}\n{tool.END}\nafter\n")
    monkeypatch.setattr(tool, "CHARTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["chart_docs", "--check"])
    assert tool.main() == 1 and "out of date" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["chart_docs"])
    assert tool.main() == 0
    text = (chart / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "| `port` | `80` | Port. |" in text
    monkeypatch.setattr(sys, "argv", ["chart_docs", "--check"])
    assert tool.main() == 0


@pytest.mark.parametrize("chart", ["SEMR", "SEMR_inference"])
def test_schema_is_strict_everywhere_but_below_other_charts(chart: str) -> None:
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
    others = {
        each["name"] for each in yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text()).get("dependencies", [])
    }

    def look(part: Any, path: tuple[str, ...]) -> None:
        if isinstance(part, dict):
            if "properties" in part and path[-1:] != ("properties",) and not others & set(path):
                assert part.get("additionalProperties") is False, ".".join(path)
            for key, value in part.items():
                look(value, (*path, key))

    look(schema, ())


@pytest.mark.parametrize("chart", ["SEMR", "SEMR_inference"])
def test_every_value_is_used(chart: str, tool: Any) -> None:
    """A value that no template reads does nothing, and whoever sets it is deceived."""
    text = "\n".join(path.read_text() for path in (CHARTS / chart / "templates").rglob("*") if path.is_file())
    others = {
        each["name"] for each in yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text()).get("dependencies", [])
    }

    def look(entries: list[Any]) -> None:
        for entry in entries:
            if entry.path[-1] not in others:
                assert re.search(rf"\b{re.escape(entry.path[-1])}\b", text), f"no template reads {'.'.join(entry.path)}"
                if "ref" not in entry.schema:  # named by the user, and read in a loop
                    look(entry.children)

    look(tool.read_entries(CHARTS / chart / "values.yaml"))


@pytest.mark.parametrize("chart", ["SEMR", "SEMR_inference"])
def test_templates_read_only_values_that_exist(chart: str) -> None:
    values = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    for path in (CHARTS / chart / "templates").rglob("*"):
        if not path.is_file():
            continue
        for match in re.finditer(r"(?<![A-Za-z])\.Values((?:\.[A-Za-z0-9]+)+)", path.read_text()):
            place = values
            for part in match[1].strip(".").split("."):
                assert isinstance(place, dict) and part in place, (
                    f"{path.name} reads .Values{match[1]}, which is no value"
                )
                place = place[part]
                if not isinstance(place, dict) or not place:
                    break
