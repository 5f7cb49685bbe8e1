"""The evolution of a model as one self-contained HTML page: timeline, live numbers, gate, confusion matrices."""

from __future__ import annotations

import base64
import html
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from jinja2 import Environment
from mlflow.exceptions import MlflowException

from semr import tracking
from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.evolution.audit import AuditRecord, AuditTrail
from semr.evolution.timeline import gist
from semr.monitoring import queries
from semr.monitoring.prometheus import Prometheus, Series
from semr.registry import Registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is drawn over time: title, and the PromQL for a model.
CURVES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("live accuracy", queries.window_accuracy),
    ("input drift (largest PSI of a feature)", queries.input_drift),
    ("latency, 99th percentile (s)", queries.window_latency_p99),
)
_MARKS = {"triggered": "#b26a00", "promoted": "#1b7f3b", "rolled_back": "#b3261e", "refused": "#b3261e"}
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_POINTS = 400
_COLOURS = ("#35618f", "#8f4e35", "#4f7a3a", "#7a3a73", "#57606a")


@dataclass(frozen=True)
class _Gate:
    title: str
    promotes: bool
    reason: str
    rows: list[tuple[str, str]]
    checks: list[dict[str, Any]]
    pictures: list[str]


def write_report(
    model: str, path: Path, audit: AuditTrail, registry: Registry, prometheus: Prometheus, hours: float = 24.0
) -> None:
    """Write the page to `path`; the curves cover the last `hours`, or the time since the first record if that is shorter.

    What cannot be had (no Prometheus, an artifact that was deleted) is named on the page in place of the picture.

    Raises:
        InvalidInputError: there is no record of such a model, or `path` cannot be written.
        DependencyUnavailableError: the object store or MLflow is away.
    """
    records = audit.records(model)
    if not records:
        raise InvalidInputError(f"There is no record of a model {model!r}: nothing has been retrained yet.")
    end = time.time()
    begin = max(end - hours * 3600, records[0].time - 120)
    page = (
        Environment(autoescape=True)
        .from_string(_TEMPLATE.read_text(encoding="utf-8"))
        .render(
            model=model,
            written=_stamp(end),
            records=[(_stamp(record.time), record.kind, _title(record), gist(record)) for record in records],
            curves=_curves(model, prometheus, records, begin, end),
            gates=[gate for record in records if record.kind == "gate" if (gate := _gate(record, registry))],
            aliases=registry.aliases(model),
        )
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}.") from error


def _curves(model: str, prometheus: Prometheus, records: Sequence[AuditRecord], begin: float, end: float) -> str:
    """The curves as a PNG data URI; a sentence where Prometheus does not answer."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second, and only this needs it

    step = max(1.0, (end - begin) / _POINTS)
    figure = Figure(figsize=(9, 2.1 * len(CURVES)), layout="constrained")
    axes = figure.subplots(len(CURVES), 1, sharex=True, squeeze=False)[:, 0]
    try:
        for axis, (title, expression) in zip(axes, CURVES, strict=True):
            _draw(axis, title, prometheus.range(expression(model), begin, end, step))
    except DependencyUnavailableError as error:
        return str(error)
    for record in records:
        if record.kind in _MARKS and record.time >= begin:
            for axis in axes:
                axis.axvline(_clock(record.time), color=_MARKS[record.kind], linewidth=1, linestyle="--")
            text = record.kind.replace("_", " ")
            axes[0].annotate(
                text, (_clock(record.time), 1.02), xycoords=("data", "axes fraction"), fontsize=8, rotation=30,
                color=_MARKS[record.kind],
            )  # fmt: skip
    locator = AutoDateLocator(tz=_clock(begin).tzinfo)
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=_clock(begin).tzinfo))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _data_uri(buffer.getvalue())


def _draw(axis: Axes, title: str, series: Sequence[Series]) -> None:
    ordered = sorted(series, key=lambda each: (len(each.labels.get("version", "")), each.labels.get("version", "")))
    for index, each in enumerate(ordered):
        label = f"version {each.labels.get('version', '?')}"
        moments = [_clock(at) for at in each.times]
        axis.plot(moments, each.values, color=_COLOURS[index % len(_COLOURS)], label=label)  # type: ignore[arg-type]
    axis.set_title(title, fontsize=10, loc="left")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if series:
        axis.legend(fontsize=8, loc="best", frameon=False)


def _gate(record: AuditRecord, registry: Registry) -> _Gate | None:
    ref = registry.find(record.model, record.version)
    if ref is None:
        return None
    details: dict[str, Any] = record.details
    rows = [
        (f"{name} holdout", _comparison(details[key]))
        for name, key in (("recent", "recent"), ("old", "old"))
        if key in details
    ]
    return _Gate(
        title=f"version {record.version}, {_stamp(record.time)}",
        promotes=details.get("verdict") == "promote",
        reason=str(details.get("reason", "")),
        rows=rows,
        checks=[_shown(check) for check in details.get("checks", [])],
        pictures=[picture for name in ("champion", "challenger") if (picture := _picture(ref.run_id, name))],
    )


def _shown(check: dict[str, Any]) -> dict[str, Any]:
    """A check for the table: schemas are long, and of interest only where they differ."""
    is_schema = check["passed"] and check["found"] == check["wanted"]
    return {**check, "found": "the same", "wanted": "the same"} if is_schema else check


def _comparison(numbers: dict[str, Any]) -> str:
    return (
        f"champion {numbers['champion']:.4f}, challenger {numbers['challenger']:.4f}, gain {numbers['gain']:+.4f} "
        f"({numbers['low']:+.4f} to {numbers['high']:+.4f}), {numbers['examples']} examples"
    )


def _picture(run_id: str, name: str) -> str:
    """The confusion matrix of `name` as a data URI, "" when the run has none."""
    with tracking.named_errors(), tempfile.TemporaryDirectory() as folder:
        tracking.connect()
        try:
            path = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=f"gate/confusion_matrix_{name}.png", dst_path=folder
            )
        except (MlflowException, OSError):
            return ""
        return _data_uri(Path(path).read_bytes())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _title(record: AuditRecord) -> str:
    version = f" version {record.version}" if record.version else ""
    return f"{record.kind.replace('_', ' ')}{version}"


def _clock(moment: float) -> datetime:
    return datetime.fromtimestamp(moment).astimezone()


def _stamp(moment: float) -> str:
    return html.escape(_clock(moment).strftime("%Y-%m-%d %H:%M:%S"))
