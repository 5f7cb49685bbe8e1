"""`make demo`: from nothing to a served model on one machine, each step shown with its time.

The embedded stack comes up in `.semr` of the working directory, the steps of `pipeline` run on it one after the other, and 200
holdout pictures are sent to the model over HTTP. The stack goes down at the end unless it was up before or `--keep` is given.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from semr.deployment.verification import ProbeReport
from semr.errors import SemrError
from semr.registry import ModelVersionRef
from semr.settings import STATE_FOLDER_NAME, Settings, get_settings
from semr.stack import control
from semr.stack.display import show_progress
from semr.stack.status import StackState
from workflow_examples.mnist import pipeline
from workflow_examples.mnist.train import TrainConfig

REQUESTS = 200
MODEL = "mnist"
_LOG_FILE = "logs/demo.log"
_TAIL_LINES = 25

Result = TypeVar("Result")


@dataclass
class Demo:
    """One run of the demo: where it shows things, where the jobs' logs go, and how long each step took (seconds)."""

    console: Console
    state_folder: Path
    times: dict[str, float] = field(default_factory=dict)

    @property
    def log_file(self) -> Path:
        """What the Ray jobs print."""
        return self.state_folder / _LOG_FILE

    def step(self, title: str, work: Callable[[], Result]) -> Result:
        """Do one step with a spinner, then a line with its time."""
        started = time.monotonic()
        with self.console.status(f"{title} …"):
            result = work()
        self.times[title] = time.monotonic() - started
        self.console.print(f"[green]✓[/] {title:<58} {self.times[title]:6.1f} s", highlight=False)
        return result

    def say(self, line: str) -> None:
        """Keep a line of a job's log."""
        with self.log_file.open("a") as file:
            file.write(line + "\n")

    def tail(self) -> str:
        """The last lines of the jobs' logs."""
        if not self.log_file.is_file():
            return ""
        return "\n".join(self.log_file.read_text().splitlines()[-_TAIL_LINES:])


def run(demo: Demo, source: str) -> None:
    """Bring the stack up, do the steps, print the table."""
    started = time.monotonic()
    with show_progress(demo.console) as progress:
        settings = control.up(demo.state_folder, progress=progress)
    demo.times["stack up"] = time.monotonic() - started
    demo.console.print(f"[green]✓[/] {'stack up':<58} {demo.times['stack up']:6.1f} s", highlight=False)
    get_settings.cache_clear()
    demo.log_file.unlink(missing_ok=True)

    raw = demo.step(f"data: {source} into the object store", lambda: pipeline.ingest(source))
    dataset = demo.step("prepare: split on Ray Data", lambda: pipeline.prepare(raw, demo.say))
    config = TrainConfig(dataset)
    title = f"train: Keras, {config.workers} Ray Train workers, {config.epochs} epochs"
    run_id = demo.step(title, lambda: pipeline.train(config, demo.say))
    demo.step(
        "evaluate: holdout accuracy, report, confusion matrix",
        lambda: pipeline.evaluate(run_id, dataset, 0.9, demo.say),
    )
    model = demo.step("register: model version in MLflow", lambda: pipeline.register(run_id, MODEL, dataset))
    deployment = demo.step("deploy: Ray Serve", lambda: pipeline.deploy(model, replicas=1))
    demo.step("verify: real requests; champion", lambda: pipeline.verify(deployment, dataset))
    report = demo.step(f"{REQUESTS} requests", lambda: pipeline.probe(deployment, dataset, REQUESTS))
    demo.console.print()
    demo.console.print(_what_happened(model, dataset, report, time.monotonic() - started))
    demo.console.print(_where_to_look(settings, model, deployment.url))


def _what_happened(model: ModelVersionRef, dataset: str, report: ProbeReport, seconds: float) -> Table:
    table = Table(title="What happened", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("dataset", f"mnist, version {dataset}")
    table.add_row("model", f"{model.name}, version {model.version}, champion (run {model.run_id})")
    table.add_row("holdout accuracy", f"{model.metrics['holdout_accuracy']:.4f}")
    table.add_row(
        "requests",
        f"{report.requests} sent, {report.failed} failed, accuracy {report.accuracy:.4f}, "
        f"p50 {report.p50_milliseconds:.1f} ms, p99 {report.p99_milliseconds:.1f} ms",
    )
    table.add_row("time", f"{seconds:.0f} s")
    return table


def _where_to_look(settings: Settings, model: ModelVersionRef, url: str) -> Table:
    table = Table(title="\nWhere to look", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("MLflow", f"{settings.need('mlflow_uri')}/#/models/{model.name}/versions/{model.version}")
    table.add_row("Ray", f"{settings.need('ray_dashboard_url')}  (asks for SEMR_RAY_AUTH_TOKEN, see `semr env`)")
    table.add_row("Prometheus", f"{settings.need('prometheus_url')}/graph?g0.expr=semr_inference_requests_total")
    table.add_row("the model", f"{url}/v2/models/{model.name}")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workflow_examples.mnist.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the stack running at the end")
    parser.add_argument("--source", default="digits", help="pictures, as for `semr data mnist` (default: digits)")
    options = parser.parse_args(arguments)
    demo = Demo(Console(), Path(STATE_FOLDER_NAME).resolve())
    was_up = control.status(demo.state_folder).state is not StackState.STOPPED
    keep = options.keep
    try:
        run(demo, options.source)
    except SemrError as error:
        keep = False
        print(f"{demo.tail()}\ndemo: {error}".strip(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        keep = False
        print("demo: interrupted", file=sys.stderr)
        return 130
    finally:
        if was_up or keep:
            demo.console.print("\nThe stack stays up: `semr status` shows it, `semr down` ends it.", highlight=False)
        else:
            with demo.console.status("stack down …"):
                control.down(demo.state_folder)
            demo.console.print(
                "\nThe stack is down; its data stay in .semr. KEEP=1 make demo leaves it up.", highlight=False
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
