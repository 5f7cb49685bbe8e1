"""The rules: promtool's own tests, agreement with `semr.monitoring.drift`, and time compression."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.inference.instruments import INSTRUMENTS
from semr.monitoring import queries
from semr.monitoring.drift import LEAST_ROWS, PSI_THRESHOLD, ReferenceWindow, measure_drift
from semr.monitoring.prometheus import Prometheus
from semr.monitoring.time_compression import compress
from semr.settings import Settings

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "helm_charts" / "SEMR" / "rules").glob("*.yaml"))
TESTS = sorted((ROOT / "tests" / "rules").glob("*.yaml"))


def promtool(*arguments: str | Path) -> None:
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT / "tests" / "rules", capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_sound() -> None:
    promtool("check", "rules", *RULES)


@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.stem)
def test_rules_do_what_they_should(file: Path) -> None:
    promtool("test", "rules", file)


def test_every_alert_has_what_the_evolution_service_needs() -> None:
    alerts = [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    alerts = [rule for rule in alerts if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == {
        "ModelInputDrift",
        "ModelQualityDegraded",
        "ModelLatencyHigh",
        "ModelErrorsHigh",
        "ModelUnavailable",
        "ModelStale",
        "ModelRolledBack",
    }
    for rule in alerts:
        # What the evolution service did itself is for people.
        assert rule["labels"].get("semr") == (None if rule["alert"] == "ModelRolledBack" else "evolution")
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_thresholds_are_those_of_the_module() -> None:
    text = "".join(path.read_text() for path in RULES)
    assert f"semr:input_psi:feature > {PSI_THRESHOLD}" in text
    assert f"semr:input_window:rows >= {LEAST_ROWS}" in text


def test_rules_name_only_instruments_that_exist() -> None:
    known = {each.name for each in INSTRUMENTS} | {"semr_evolution_launches_total"}
    suffixes = ("_bucket", "_sum", "_count")
    text = "".join(path.read_text() for path in RULES)
    words = {
        word for word in text.replace("(", " ").replace("{", " ").replace("[", " ").split() if word.startswith("semr_")
    }
    for word in words:
        name = word.strip(")[],")
        base = next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)
        assert base in known, f"the rules use {name}, which no server exports"


def test_prometheus_and_python_compute_the_same_psi(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    reference = ReferenceWindow.from_inputs(random.normal(size=(800, 2)), "columns")
    counts = reference.bin(random.normal(0.5, 1.2, size=(90, 2)))
    series: list[dict[str, str]] = [
        {"series": 'semr_model_info{model="m", version="1"}', "values": "1x60"},
        {"series": 'semr_input_reference_rows{model="m", version="1"}', "values": f"{reference.rows}x60"},
    ]
    checks = []
    # The window of 10 minutes holds what a scrape a minute adds ten times.
    measured = measure_drift(reference, tuple(each * 10 for each in counts))
    for feature, live, drift in zip(reference.features, counts, measured, strict=True):
        labels = f'model="m", version="1", group="{feature.group}", feature="{feature.name}"'
        quantile = reference.chance_quantile(feature)
        series.append({"series": f"semr_input_chance_quantile{{{labels}}}", "values": f"{quantile!r}x60"})
        for index, (ratio, count) in enumerate(zip(feature.ratios.tolist(), live.tolist(), strict=True)):
            binned = f'{labels}, bin="{index:02d}"'
            series.append({"series": f"semr_input_reference_ratio{{{binned}}}", "values": f"{ratio!r}x60"})
            series.append({"series": f"semr_input_bin_total{{{binned}}}", "values": f"0+{count}x60"})
        for record, value in (
            ("semr:input_psi:feature", drift.psi),
            ("semr:input_psi_chance:feature", drift.critical_psi),
        ):
            expression = f"abs({record}{{{labels}}} - {value!r}) < bool 1e-9"
            checks.append(
                {"expr": expression, "eval_time": "30m", "exp_samples": [{"labels": f"{{{labels}}}", "value": 1}]}
            )
    file = tmp_path / "psi.yaml"
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": checks}]
    file.write_text(yaml.safe_dump({"rule_files": list(map(str, RULES)), "evaluation_interval": "15s", "tests": tests}))
    promtool("test", "rules", file)


@pytest.mark.parametrize("factor", [1, 7.3, 20, 1000])
def test_compressed_rules_are_sound(tmp_path: Path, factor: float) -> None:
    files = []
    for path in RULES:
        files.append(tmp_path / path.name)
        files[-1].write_text(compress(path.read_text(), factor))
    promtool("check", "rules", *files)


def test_compression_divides_durations_and_nothing_else() -> None:
    rules = """
groups:
  - name: g
    interval: 1m30s
    rules:
      - record: a
        expr: increase(x{path="[10m]", y=~'5m'}[10m]) > 600 and rate(z[1h:30s] offset 2m) # [10m]
      - alert: B
        expr: up == 0
        for: 0s
        annotations: {summary: "for 10m"}
"""
    group = yaml.safe_load(compress(rules, 20))["groups"][0]
    assert group["interval"] == "4500ms"
    expected = """increase(x{path="[10m]", y=~'5m'}[30000ms]) > 600 and rate(z[180000ms:1500ms] offset 6000ms)"""
    assert group["rules"][0]["expr"] == expected
    assert group["rules"][1] == {"alert": "B", "expr": "up == 0", "for": "0s", "annotations": {"summary": "for 10m"}}


def test_compression_never_reaches_zero() -> None:
    rules = "groups: [{name: g, interval: 1s, rules: [{record: a, expr: 'rate(x[1m])'}]}]"
    assert yaml.safe_load(compress(rules, 1e9))["groups"][0]["interval"] == "1ms"


@pytest.mark.parametrize("factor", [0, -1, float("inf"), float("nan")])
def test_wrong_factors_are_refused(factor: float) -> None:
    with pytest.raises(InvalidInputError, match="above 0"):
        compress("groups: []", factor)


@pytest.mark.parametrize("text", ["[", "- 1", "a: 1"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        compress(text, 2)


def test_queries_are_promql(tmp_path: Path) -> None:
    model = 'a"b\\'
    expressions = [
        queries.input_drift(model),
        queries.window_accuracy(model),
        queries.window_latency_p99(model),
        queries.firing_alerts(model),
        queries.requests(model, "1", None),
        queries.requests(model, "1", 30, status="5.."),
        queries.labels(model, "1", 0.5, correct="true"),
    ]
    rules = [{"record": f"q{index}", "expr": expression} for index, expression in enumerate(expressions)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", file)


def test_a_prometheus_that_is_away_is_named(unused_port: int) -> None:
    prometheus = Prometheus(Settings(prometheus_url=f"http://127.0.0.1:{unused_port}"))
    with pytest.raises(DependencyUnavailableError, match="Prometheus"):
        prometheus.query("up")
