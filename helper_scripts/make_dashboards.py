#!/usr/bin/env python3
"""Makes the Grafana dashboards of the SEMR chart (helm_charts/SEMR/dashboards/*.json).

Grafana's JSON repeats itself a hundred times; here a panel is one call. `--check` changes nothing and exits with 1 when a file
is not what this would write.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "helm_charts" / "SEMR" / "dashboards"
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24


@dataclass
class Dashboard:
    """Panels are set in rows of `_WIDTH` units, in the order in which they are added."""

    uid: str
    title: str
    description: str
    by_model: bool = False
    annotations: list[dict[str, Any]] = field(default_factory=list)
    panels: list[dict[str, Any]] = field(default_factory=list)
    _x: int = 0
    _y: int = 0

    def row(self, title: str) -> None:
        """A heading."""
        self._next_line()
        self.panels.append(
            {
                "id": len(self.panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": self._y, "w": _WIDTH, "h": 1},
            }
        )
        self._y += 1

    def stat(self, title: str, description: str, queries: dict[str, str], unit: str = "short", **options: Any) -> None:  # noqa: ANN401
        """The newest value of each query, as a number; `thresholds` colours it."""
        panel = self._panel("stat", title, description, queries, unit, width=4, height=4, **options)
        panel["options"] = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            # One answer has no curve.
            "graphMode": "none",
            "textMode": "auto",
        }
        for target in panel["targets"]:
            target["instant"], target["range"] = True, False

    def graph(self, title: str, description: str, queries: dict[str, str], unit: str = "short", **options: Any) -> None:  # noqa: ANN401
        """Each query over time; keys are Grafana's legend formats. `stacked` puts them upon each other."""
        stacked = options.pop("stacked", False)
        panel = self._panel("timeseries", title, description, queries, unit, **options)
        panel["fieldConfig"]["defaults"]["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 20 if stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if stacked else "none"},
        }
        panel["options"] = {
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }

    def state(self, title: str, description: str, queries: dict[str, str], **options: Any) -> None:  # noqa: ANN401
        """States over time, as coloured bars."""
        panel = self._panel("state-timeline", title, description, queries, "short", **options)
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        panel["options"] = {"mergeValues": True, "showValue": "never", "legend": legend}

    def text(self) -> str:
        """The file."""
        variables: list[dict[str, Any]] = [
            {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}
        ]
        if self.by_model:
            variables.append(
                {
                    "name": "model",
                    "label": "Model",
                    "type": "query",
                    "datasource": _DATASOURCE,
                    "query": {"query": "label_values(semr_model_info, model)", "refId": "model"},
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".+",
                    "current": {"text": "All", "value": "$__all"},
                    "sort": 1,
                }
            )
        content = {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["semr"],
            "schemaVersion": 39,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "timezone": "browser",
            "templating": {"list": variables},
            "annotations": {"list": self.annotations},
            "links": [
                {
                    "type": "dashboards",
                    "title": "SEMR",
                    "tags": ["semr"],
                    "asDropdown": True,
                    "includeVars": True,
                    "keepTime": True,
                    "icon": "external link",
                    "targetBlank": False,
                    "tooltip": "",
                    "url": "",
                }
            ],
            "panels": self.panels,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def _panel(
        self,
        kind: str,
        title: str,
        description: str,
        queries: dict[str, str],
        unit: str,
        width: int = 8,
        height: int = 8,
        thresholds: tuple[tuple[float | None, str], ...] = ((None, "green"),),
        **limits: float,
    ) -> dict[str, Any]:
        if self._x + width > _WIDTH:
            self._next_line()
        panel: dict[str, Any] = {
            "id": len(self.panels) + 1,
            "type": kind,
            "title": title,
            "description": description,
            "datasource": _DATASOURCE,
            "gridPos": {"x": self._x, "y": self._y, "w": width, "h": height},
            "fieldConfig": {
                "defaults": {
                    "unit": unit,
                    "thresholds": {
                        "mode": "absolute",
                        "steps": [{"value": value, "color": colour} for value, colour in thresholds],
                    },
                    **limits,
                },
                "overrides": [],
            },
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": _DATASOURCE,
                    "expr": query,
                    "legendFormat": legend,
                    "range": True,
                }
                for index, (legend, query) in enumerate(queries.items())
            ],
        }
        self.panels.append(panel)
        self._x += width
        self._height = height
        return panel

    def _next_line(self) -> None:
        if self._x:
            self._y += self._height
            self._x = 0


def annotation(name: str, query: str, title: str, text: str, colour: str) -> dict[str, Any]:
    """Marks on every graph where the query has a value."""
    return {
        "name": name,
        "datasource": _DATASOURCE,
        "enable": True,
        "target": {"refId": "Anno", "expr": query, "interval": "15s"},
        "titleFormat": title,
        "textFormat": text,
        "iconColor": colour,
    }


# A graph of what has not happened yet says so, and has no line without a name once it has.
_OR_NOTHING = " or on () vector(0)"
# What a board says of the version in service, and of no earlier one.
_SERVED = " and on (model, version) semr:model_served"
_UP = ((None, "red"), (1, "green"))
_FEW = ((None, "green"), (1, "orange"))
_NEW_VERSION = annotation(
    "New version",
    '(max by (model, version) (semr_model_info{model=~"$model"}) == 1)'
    ' unless (max by (model, version) (semr_model_info{model=~"$model"} offset 1m) == 1)',
    "{{model}} {{version}}",
    "in service from here on",
    "green",
)
_ALERTS = annotation(
    "Alerts",
    'ALERTS{semr="evolution", alertstate="firing", model=~"$model"}',
    "{{alertname}}",
    "{{model}} {{version}}",
    "red",
)


def overview() -> Dashboard:
    """What a person looks at first."""
    board = Dashboard("semr-overview", "SEMR / Platform overview", "Is everything there, and what is going on?")
    board.row("Services")
    for title, metric, description in (
        ("MLflow", 'up{job=~".*mlflow.*"}', "Tracking server and registry answer."),
        ("Object store", 'up{job=~".*(minio|object-store).*"}', "MinIO answers."),
        ("Evolution", 'up{job=~".*evolution.*"}', "The evolution service answers."),
    ):
        board.stat(title, description, {"up": f"min({metric})"}, thresholds=_UP)
    board.stat("Ray nodes", "Ray nodes that report.", {"nodes": "count(ray_node_cpu_count)"})
    board.stat(
        "Models served", "Models of which a replica reports.", {"models": "count(count by (model) (semr:model_served))"}
    )
    board.stat(
        "Alerts",
        "Alerts about models that fire now.",
        {"alerts": 'count(ALERTS{semr="evolution", alertstate="firing"}) or vector(0)'},
        thresholds=_FEW,
    )
    board.row("Traffic and models")
    board.graph(
        "Requests", "Requests a second, by model.", {"{{model}}": "sum by (model) (semr:requests:rate)"}, "reqps"
    )
    board.graph(
        "Accuracy",
        "Live accuracy by the labels that came in.",
        {"{{model}} {{version}}": "semr:accuracy:window"},
        "percentunit",
    )
    board.graph(
        "Drift",
        "Largest PSI of a feature; 0.25 is a major shift.",
        {"{{model}} {{version}}": "semr:input_drift:overall"},
    )
    board.row("Evolution")
    board.graph(
        "Launches",
        "Launches queued or running.",
        {"{{model}} {{state}}": "semr_evolution_active_launches"},
        stacked=True,
    )
    board.state(
        "Dependencies of the evolution service",
        "1 while it answers.",
        {"{{dependency}}": "semr_evolution_dependency_up"},
    )
    board.graph(
        "Audit records waiting",
        "Records not yet in the object store.",
        {"records": "semr_evolution_audit_pending_records"},
    )
    board.row("Platform")
    board.graph(
        "CPU of Ray",
        "Share of the CPUs that Ray's nodes have.",
        {
            "{{ray_cluster}}": "sum by (ray_cluster) (ray_node_cpu_utilization / 100 * ray_node_cpu_count)"
            " / sum by (ray_cluster) (ray_node_cpu_count)"
        },
        "percentunit",
    )
    board.graph(
        "Memory of Ray",
        "Share of the memory that Ray's nodes have.",
        {"{{ray_cluster}}": "sum by (ray_cluster) (ray_node_mem_used) / sum by (ray_cluster) (ray_node_mem_total)"},
        "percentunit",
    )
    board.graph(
        "Object store",
        "Used space of MinIO.",
        {"used": "sum(minio_cluster_usage_total_bytes)", "free": "sum(minio_cluster_capacity_usable_free_bytes)"},
        "bytes",
    )
    return board


def ray() -> Dashboard:
    """The Ray clusters for jobs and for serving."""
    board = Dashboard("semr-ray", "SEMR / Ray", "Nodes, tasks and actors of the Ray clusters for jobs and for serving.")
    board.row("Clusters")
    board.stat("Nodes", "Nodes that report.", {"{{ray_cluster}}": "count by (ray_cluster) (ray_node_cpu_count)"})
    board.stat("CPUs", "CPUs of all nodes.", {"{{ray_cluster}}": "sum by (ray_cluster) (ray_node_cpu_count)"})
    board.stat(
        "Memory", "Memory of all nodes.", {"{{ray_cluster}}": "sum by (ray_cluster) (ray_node_mem_total)"}, "bytes"
    )
    board.stat("GPUs", "GPUs of all nodes.", {"GPUs": "sum(ray_node_gpus_available) or vector(0)"})
    board.stat("Running tasks", "Tasks that run now.", {"tasks": 'sum(ray_tasks{State="RUNNING"}) or vector(0)'})
    board.stat("Living actors", "Actors that are alive.", {"actors": 'sum(ray_actors{State=~"ALIVE.*"}) or vector(0)'})
    board.row("Work")
    # Ray counts those that have ended for ever, and they would hide the others.
    board.graph(
        "Tasks",
        "Tasks that have not ended, by state.",
        {"{{State}}": 'sum by (State) (ray_tasks{State!~"FINISHED|FAILED"})'},
        stacked=True,
    )
    board.graph(
        "Actors",
        "Actors that have not ended, by state.",
        {"{{State}}": 'sum by (State) (ray_actors{State!="DEAD"})'},
        stacked=True,
    )
    board.graph(
        "Memory by component",
        "Resident memory of Ray's own processes and of workers.",
        {"{{Component}}": "topk(10, sum by (Component) (ray_component_rss_bytes))"},
        "bytes",
        stacked=True,
    )
    board.row("Nodes")
    node = "{{instance}}"
    board.graph("CPU", "Share of a node's CPUs.", {node: "ray_node_cpu_utilization"}, "percent", min=0, max=100)
    board.graph(
        "Memory",
        "Share of a node's memory.",
        {node: "ray_node_mem_used / ray_node_mem_total"},
        "percentunit",
        min=0,
        max=1,
    )
    board.graph(
        "Disk", "Share of a node's disk.", {node: "ray_node_disk_utilization_percentage"}, "percent", min=0, max=100
    )
    board.graph(
        "Network",
        "Bytes a second.",
        {"in {{instance}}": "ray_node_network_receive_speed", "out {{instance}}": "ray_node_network_send_speed"},
        "Bps",
    )
    board.graph(
        "Disk traffic",
        "Bytes a second.",
        {"read {{instance}}": "ray_node_disk_io_read_speed", "write {{instance}}": "ray_node_disk_io_write_speed"},
        "Bps",
    )
    board.graph("GPU", "Use of a GPU.", {"{{instance}} {{GpuIndex}}": "ray_node_gpus_utilization"}, "percent")
    return board


def serving() -> Dashboard:
    """Traffic, errors, latency, replicas of served models."""
    board = Dashboard(
        "semr-serving", "SEMR / Serving", "Traffic, errors, latency and replicas of served models.", by_model=True
    )
    board.annotations = [_NEW_VERSION, _ALERTS]
    mine = '{model=~"$model"}'
    version = "{{model}} {{version}}"
    board.row("Now")
    board.stat("Requests", "Requests a second.", {"requests": f"sum(semr:requests:rate{mine})"}, "reqps")
    board.stat(
        "Failed",
        "Share of the requests of 10 minutes that failed by the server's fault.",
        {version: f"semr:error_ratio:window{mine}"},
        "percentunit",
        thresholds=((None, "green"), (0.01, "red")),
    )
    board.stat("p50", "Half of the requests are faster.", {version: f"semr:latency_p50:window{mine}"}, "s")
    board.stat(
        "p99",
        "99 of 100 requests are faster.",
        {version: f"semr:latency_p99:window{mine}"},
        "s",
        thresholds=((None, "green"), (0.5, "orange")),
    )
    board.stat(
        "Replicas",
        "Replicas that report the version.",
        {version: f"count by (model, version) (semr_model_info{mine} == 1)"},
    )
    board.stat(
        "Load failures",
        "Versions that could not be loaded.",
        {"failures": f"sum(semr_model_load_failures_total{mine}) or vector(0)"},
        thresholds=_FEW,
    )
    board.row("Traffic")
    board.graph(
        "Requests by version",
        "Requests a second; while a version is rolled out there are two.",
        {version: f"sum by (model, version) (rate(semr_inference_requests_total{mine}[$__rate_interval]))"},
        "reqps",
        stacked=True,
    )
    board.graph(
        "Requests by status",
        "Requests a second by HTTP status.",
        {"{{status}}": f"sum by (status) (rate(semr_inference_requests_total{mine}[$__rate_interval]))"},
        "reqps",
        stacked=True,
    )
    board.graph(
        "Examples in a request",
        "Mean batch size.",
        {
            version: f"sum by (model, version) (rate(semr_inference_batch_size_sum{mine}[$__rate_interval]))"
            f" / sum by (model, version) (rate(semr_inference_batch_size_count{mine}[$__rate_interval]))"
        },
    )
    board.row("Latency and replicas")
    for quantile in (50, 95, 99):
        board.graph(
            f"Latency p{quantile}",
            "From a parsed request to its answer.",
            {
                version: f"histogram_quantile({quantile / 100:g}, sum by (model, version, le) "
                f"(rate(semr_inference_latency_seconds_bucket{mine}[$__rate_interval])))"
            },
            "s",
        )
    board.graph(
        "Replicas",
        "Replicas that report the version.",
        {version: f"count by (model, version) (semr_model_info{mine} == 1)"},
    )
    board.graph(
        "Predictions",
        "Share of each predicted class.",
        {"{{model}} {{output}}": f"sum by (model, output) (semr:predictions:ratio{mine})"},
        "percentunit",
        stacked=True,
    )
    board.graph(
        "Confidence",
        "Mean probability that the model gives its answer.",
        {version: f"semr:confidence:window{mine}"},
        "percentunit",
        min=0,
        max=1,
    )
    return board


def evolution() -> Dashboard:
    """Versions over time, drift, accuracy, retrainings and verdicts."""
    board = Dashboard(
        "semr-evolution",
        "SEMR / Model evolution",
        "Versions over time, drift, accuracy, retrainings and verdicts.",
        by_model=True,
    )
    launched = annotation(
        "Launch",
        'changes(semr_evolution_last_launch_timestamp_seconds{model=~"$model"}[1m]) > 0',
        "retraining",
        "{{model}}",
        "blue",
    )
    board.annotations = [_NEW_VERSION, _ALERTS, launched]
    mine = '{model=~"$model"}'
    version = "{{model}} {{version}}"
    board.row("Now")
    board.stat("Version", "Version in service.", {version: f"max by (model, version) (semr_model_info{mine} == 1)"})
    board.panels[-1]["options"]["textMode"] = "name"
    board.stat(
        "Age",
        "Since the training of the version in service.",
        {version: f"time() - max by (model, version) (semr_model_trained_timestamp_seconds{mine}){_SERVED}"},
        "s",
    )
    board.stat(
        "Drift",
        "Largest PSI of a feature; 0.25 is a major shift.",
        {version: f"semr:input_drift:overall{mine}{_SERVED}"},
        thresholds=((None, "green"), (0.1, "orange"), (0.25, "red")),
    )
    board.stat(
        "Accuracy on the holdout",
        "When the version in service was trained.",
        {version: f"max by (model, version) (semr_model_reference_accuracy{mine}){_SERVED}"},
        "percentunit",
    )
    board.stat(
        "Retrainings", "Launches that ended.", {"launches": f"sum(semr_evolution_launches_total{mine}) or vector(0)"}
    )
    board.stat(
        "Paused",
        "Models for which nothing is launched.",
        {"paused": f"sum(semr_evolution_paused{mine})"},
        thresholds=_FEW,
    )
    board.row("Versions and quality")
    board.state(
        "Versions in service",
        "Which version was served when.",
        {version: f"max by (model, version) (semr_model_info{mine} == 1)"},
        width=24,
        height=6,
    )
    board.graph(
        "Accuracy",
        "Live accuracy by the labels that came in, and that of the version on its holdout.",
        {
            f"live {version}": f"semr:accuracy:window{mine}",
            f"holdout {version}": f"max by (model, version) (semr_model_reference_accuracy{mine}){_SERVED}",
        },
        "percentunit",
        width=12,
    )
    board.graph(
        "Drift",
        "Largest PSI of a feature, and from where on it is a major shift.",
        {version: f"semr:input_drift:overall{mine}", "major shift": "vector(0.25)"},
        width=12,
    )
    board.graph(
        "Drift by group of features",
        "Largest PSI in each group.",
        {"{{model}} {{group}}": f"max by (model, group) (semr:input_drift:group{mine})"},
    )
    board.graph(
        "Labels",
        "Labels that came in, in ten minutes.",
        {version: f"semr:feedback_window:rows{mine}"},
    )
    board.graph(
        "Rows recorded",
        "For the next training, a second.",
        {
            "{{model}} {{kind}}": f"sum by (model, kind) (rate(semr_recorder_rows_total{mine}[$__rate_interval])){_OR_NOTHING}"
        },
    )
    board.row("Retrainings")
    board.graph(
        "Verdicts",
        "Ended launches by outcome: succeeded is promoted, refused is the gate's no, rolled back did worse live.",
        {"{{model}} {{state}}": f"sum by (model, state) (semr_evolution_launches_total{mine}){_OR_NOTHING}"},
    )
    board.graph(
        "Launches under way",
        "Queued, launching, running.",
        {"{{model}} {{state}}": f"sum by (model, state) (semr_evolution_active_launches{mine})"},
        stacked=True,
    )
    board.graph(
        "What became of alerts",
        "Alerts received, by result.",
        {
            "{{alert}} {{result}}": "sum by (alert, result) "
            f"(increase(semr_evolution_alerts_total{mine}[$__rate_interval])){_OR_NOTHING}"
        },
    )
    return board


DASHBOARDS = {"overview": overview, "ray": ray, "serving": serving, "evolution": evolution}


def main() -> int:
    """Write or check the files."""
    parser = argparse.ArgumentParser(description="Make the Grafana dashboards of the SEMR chart.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a file is out of date")
    check = parser.parse_args().check
    stale = False
    for name, make in DASHBOARDS.items():
        path, text = FOLDER / f"{name}.json", make().text()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale = True
        if not check:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(
            f"make_dashboards: {path.name} {'is out of date: run helper_scripts/make_dashboards.py' if check else 'written'}"
        )
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
