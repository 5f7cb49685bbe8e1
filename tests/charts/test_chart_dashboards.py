"""The dashboards: every query parses, names what is exported, and those of serving and evolution show something."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chart_tools import CHARTS, ROOT, Helm
from prometheus_client.parser import text_string_to_metric_families

from semr.evolution.launches import Ledger
from semr.evolution.metrics import EvolutionMetrics
from semr.evolution.policy import Policy
from semr.inference.instruments import INSTRUMENTS
from semr.inference.metrics import PrometheusSink, ServerMetrics
from semr.monitoring.drift import ReferenceWindow
from semr.monitoring.metrics import MonitoringMetrics

DASHBOARDS = sorted((CHARTS / "SEMR" / "dashboards").glob("*.json"))
RULES = sorted((CHARTS / "SEMR" / "rules").glob("*.yaml"))
STEPS, STEP_SECONDS = 60, 15
# What is there besides SEMR's own: the stand-in for the node exporters of Ray, MinIO and Prometheus itself.
FOREIGN = re.compile(r"ray_(node|component|tasks|actors|serve)_?.*|minio_cluster_.*|up|ALERTS")


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def queries(path: Path) -> list[tuple[str, str]]:
    """(where, query) of every panel, annotation and variable, with Grafana's variables filled in."""
    content = json.loads(path.read_text())
    found = [(panel["title"], target["expr"]) for panel in panels(path) for target in panel["targets"]]
    found += [(each["name"], each["target"]["expr"]) for each in content["annotations"]["list"]]
    return [(where, fill_in(query)) for where, query in found]


def fill_in(query: str) -> str:
    filled = query.replace("$__rate_interval", "1m").replace("$model", ".+")
    assert "$" not in filled, query
    return filled


def test_files_are_up_to_date() -> None:
    tool = ROOT / "helper_scripts" / "make_dashboards.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


def test_there_are_four(helm: Helm) -> None:
    assert {path.stem for path in DASHBOARDS} == {"overview", "ray", "serving", "evolution"}
    for path in DASHBOARDS:
        found = helm.render("SEMR", None).get("ConfigMap", f"semr-dashboard-{path.stem}")
        assert json.loads(found["data"][path.name]) == json.loads(path.read_text())
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_is_whole(path: Path) -> None:
    content = json.loads(path.read_text())
    numbers = [panel["id"] for panel in content["panels"]]
    assert len(numbers) == len(set(numbers)) and len(numbers) >= 10
    cells = set()
    for panel in content["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, f"{panel['title']} lies upon another panel"
                cells.add((x, y))
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"]
    assert len({json.loads(each.read_text())["uid"] for each in DASHBOARDS}) == len(DASHBOARDS)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_queries_parse(path: Path, tmp_path: Path) -> None:
    rules = [{"record": f"query:{index}", "expr": query} for index, (_, query) in enumerate(queries(path))]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    file.write_text(file.read_text().replace("sum", "sun", 1))
    broken = subprocess.run(
        ["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert broken.returncode != 0 or "sum" not in str(rules)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_queries_name_what_is_exported(path: Path, tmp_path: Path) -> None:
    known = {f"{each.name}{suffix}" for each in INSTRUMENTS for suffix in ("", "_bucket", "_sum", "_count")}
    known |= {
        rule["record"]
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    known |= {name for (name, _), _ in exported_by_evolution(tmp_path)}
    # Counters of launches and alerts appear with the first one.
    known |= {
        "semr_evolution_launches_total",
        "semr_evolution_alerts_total",
        "semr_evolution_last_launch_timestamp_seconds",
    }
    for where, query in queries(path):
        without_text = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on|without|ignoring) \([^)]*\)', " ", query)
        names = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", without_text))
        names -= {
            "sum",
            "max",
            "min",
            "count",
            "rate",
            "increase",
            "topk",
            "histogram_quantile",
            "vector",
            "time",
            "changes",
        }
        names -= {"or", "and", "unless", "bool", "offset", "by", "on", "m"}
        for name in names:
            assert name in known or FOREIGN.fullmatch(name), f"{path.stem}, {where}: nobody exports {name}"


@pytest.mark.parametrize("name", ["serving", "evolution"])
def test_every_panel_shows_something(name: str, tmp_path: Path) -> None:
    """Asked of Prometheus' own engine, over what SEMR's own code exports after a quarter of an hour of traffic."""
    series = [
        {"series": _series(metric, labels), "values": " ".join(f"{value:g}" for value in values)}
        for (metric, labels), values in sorted(traffic(tmp_path).items())
    ]
    asked = []
    for panel in panels(CHARTS / "SEMR" / "dashboards" / f"{name}.json"):
        together = " or ".join(f"({fill_in(target['expr'])})" for target in panel["targets"][:1])
        asked.append((panel["title"], f"count({together}) > bool 0"))
    found = _ask(asked, series, tmp_path)
    assert not found, f"{name}: these panels stay empty: {found}"
    empty = _ask([("nothing", "count(semr_no_such_metric) > bool 0")], series, tmp_path)
    assert empty == ["nothing"]


def _ask(asked: list[tuple[str, str]], series: list[dict[str, str]], folder: Path) -> list[str]:
    """Titles of those queries that are not 1 at the end."""
    one = [{"labels": "{}", "value": 1}]
    at = f"{(STEPS - 1) * STEP_SECONDS}s"
    interval = f"{STEP_SECONDS}s"

    def holds(some: list[tuple[str, str]]) -> bool:
        wanted = [{"expr": query, "eval_time": at, "exp_samples": one} for _, query in some]
        content = {
            "rule_files": [str(path) for path in RULES],
            "evaluation_interval": interval,
            "tests": [{"interval": interval, "input_series": series, "promql_expr_test": wanted}],
        }
        file = folder / "test.yaml"
        file.write_text(yaml.safe_dump(content))
        command = ["promtool", "test", "rules", str(file)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).returncode == 0

    return [] if holds(asked) else [each[0] for each in asked if not holds([each])]


def traffic(folder: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]:
    """Samples of a model server and of the evolution service, at each step."""
    random = np.random.default_rng(1)
    reference = ReferenceWindow.from_inputs(random.normal(size=(800, 2)), "columns")
    sink = PrometheusSink()
    server, monitoring = ServerMetrics([sink]), MonitoringMetrics("mnist", [sink])
    monitoring.baseline("3", reference, trained=1_700_000_000.0, accuracy=0.97)
    server.switched("mnist", "3", None)
    collected: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)
    for step in range(STEPS):
        for _ in range(20):
            server.answered("mnist", "3", 200, 0.02, 1)
        inputs = random.normal(size=(20, 2))
        monitoring.predicted("3", random.integers(0, 10, 20))
        monitoring.confident("3", random.uniform(0.5, 1, 20))
        monitoring.binned("3", reference, reference.bin(inputs))
        monitoring.feedback("3", 20, 19)
        monitoring.recorded("requests", 20)
        samples = _samples(sink.render().decode()) + (exported_by_evolution(folder) if step == 0 else [])
        for key, value in samples:
            collected[key].append(value)
    # The evolution service stands still meanwhile. A series that appeared late was not there before.
    for values in collected.values():
        values.extend([values[-1]] * (STEPS - len(values)) if len(values) == 1 else [])
    return {key: [0.0] * (STEPS - len(values)) + values for key, values in collected.items()}


def exported_by_evolution(folder: Path) -> list[Any]:
    """((name, labels), value) of the evolution service before anything happened."""
    policy = Policy.model_validate(
        {"models": {"mnist": {"alerts": ["Drift"], "launch": {"local": {"module": "m", "workflow": "w"}}}}}
    )
    metrics = EvolutionMetrics(Ledger(folder / "ledger.sqlite"), policy, lambda: {"mlflow": True})
    return _samples(metrics.render().decode())


def _samples(text: str) -> list[Any]:
    return [
        ((sample.name, tuple(sorted(sample.labels.items()))), float(sample.value))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


def _series(metric: str, labels: tuple[tuple[str, str], ...]) -> str:
    return metric + "{" + ", ".join(f'{name}="{value}"' for name, value in labels) + "}"
