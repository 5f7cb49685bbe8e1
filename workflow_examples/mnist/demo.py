"""`make demo`: from nothing to a served model that evolves by itself, on one machine, each step shown with its time.

The embedded stack comes up in `.semr` of the working directory and the steps of `pipeline` run on it one after the other. Then
the pictures change under live traffic, and `demo_loop` shows how the model follows. The stack goes down at the end unless it
was up before or `--keep` is given.
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

from semr.errors import SemrError
from semr.evolution.audit import AuditTrail
from semr.evolution.report import write_report
from semr.evolution.timeline import timeline_line
from semr.monitoring.prometheus import Prometheus
from semr.registry import Registry
from semr.settings import STATE_FOLDER_NAME, Settings, get_settings
from semr.stack import control
from semr.stack.display import show_progress
from semr.stack.state import StackOptions, StateFolder, read_options, write_options
from semr.stack.status import StackState
from semr.storage import ObjectStore
from workflow_examples.mnist import pipeline
from workflow_examples.mnist.demo_loop import LoopPlan, LoopReport, show_loop
from workflow_examples.mnist.train import TrainConfig

MODEL = "mnist"
# With rules whose windows are seconds instead of minutes, and limits to match.
_POLICY = str(Path(__file__).with_name("demo_policy.yaml"))
_LOG_FILE = "logs/demo.log"
_REPORT_FILE = f"report-{MODEL}.html"
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


def run(demo: Demo, source: str, plan: LoopPlan, time_compression: float) -> None:
    """Bring the stack up, do the steps, show the loop, print what happened."""
    started = time.monotonic()
    with show_progress(demo.console) as progress:
        settings = control.up(
            demo.state_folder, StackOptions(policy=_POLICY, time_compression=time_compression), progress
        )
    demo.times["stack up"] = time.monotonic() - started
    demo.console.print(f"[green]✓[/] {'stack up':<58} {demo.times['stack up']:6.1f} s", highlight=False)
    get_settings.cache_clear()
    demo.log_file.unlink(missing_ok=True)

    raw = demo.step(f"data: {source} into the object store", lambda: pipeline.ingest(source))
    dataset = demo.step("prepare: split on Ray Data", lambda: pipeline.prepare(raw, demo.say))
    config = TrainConfig(dataset)
    title = f"train: Keras, {config.workers} Ray Train workers, {config.epochs} epochs"
    run_id = demo.step(title, lambda: pipeline.train(config, demo.say))
    accuracy = demo.step(
        "evaluate: holdout accuracy, report, confusion matrix",
        lambda: pipeline.evaluate(run_id, dataset, 0.9, demo.say),
    )
    model = demo.step("register: model version in MLflow", lambda: pipeline.register(run_id, MODEL, dataset))
    deployment = demo.step("deploy: Ray Serve", lambda: pipeline.deploy(model, replicas=1))
    demo.step("verify: real requests; champion", lambda: pipeline.verify(deployment, dataset))
    demo.console.print(
        f"\nVersion {model.version} serves, with an accuracy of {accuracy:.4f} on its holdout. Now {plan.rate:g} requests a "
        f"second of {plan.pictures} pictures each; after {plan.steady_seconds:g} s every picture is turned by "
        f"{plan.drift.strength:g} degrees. Nobody touches anything from here on.\n",
        highlight=False,
    )
    report = show_loop(deployment.url, MODEL, plan, demo.console)
    page = demo.state_folder / _REPORT_FILE
    write_report(MODEL, page, AuditTrail(ObjectStore.from_settings()), Registry(), Prometheus())
    demo.console.print(_what_happened(report, time.monotonic() - started))
    demo.console.print("\n[italic]Timeline[/]")
    for record in report.records:
        demo.console.print(f"  {timeline_line(record)}", highlight=False, markup=False, soft_wrap=True)
    demo.console.print(_where_to_look(settings, report.new_version, deployment.url))
    demo.console.print(f"\nThe evolution as a page: {page}", highlight=False, soft_wrap=True)
    if report.whole.failed:
        raise SemrError(f"{report.whole.failed} requests failed, the first with: {report.errors[0]}")


def _what_happened(report: LoopReport, seconds: float) -> Table:
    table = Table(title="\nWhat happened", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("accuracy before", f"{report.before.accuracy:.3f}  (version {report.old_version})")
    table.add_row("accuracy after the drift", f"{report.drifted.accuracy:.3f}  (version {report.old_version})")
    table.add_row(
        "accuracy in the end",
        f"{report.after.accuracy:.3f}  (version {report.new_version}, pictures never sent before)",
    )
    table.add_row("requests", f"{report.whole.sent} sent, {report.whole.failed} failed")
    table.add_row(
        "from the drift's first request",
        f"alert {report.alert_seconds:.0f} s, version {report.new_version} live {report.live_seconds:.0f} s, "
        f"accepted {report.settled_seconds:.0f} s",
    )
    table.add_row("time", f"{seconds:.0f} s in all")
    return table


def _where_to_look(settings: Settings, version: str, url: str) -> Table:
    table = Table(title="\nWhere to look", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("MLflow", f"{settings.need('mlflow_uri')}/#/models/{MODEL}/versions/{version}")
    table.add_row("Ray", f"{settings.need('ray_dashboard_url')}  (asks for SEMR_RAY_AUTH_TOKEN, see `semr env`)")
    table.add_row("Prometheus", f"{settings.need('prometheus_url')}/graph?g0.expr=semr:input_drift:overall")
    table.add_row("the model", f"{url}/v2/models/{MODEL}")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workflow_examples.mnist.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the stack running at the end")
    parser.add_argument("--source", default="digits", help="pictures, as for `semr data mnist` (default: digits)")
    usual = LoopPlan()
    parser.add_argument("--rate", type=float, default=usual.rate, help=f"requests a second (default: {usual.rate:g})")
    parser.add_argument(
        "--pictures", type=int, default=usual.pictures, help=f"in a request (default: {usual.pictures})"
    )
    parser.add_argument("--steady-seconds", type=float, default=usual.steady_seconds, help="before the drift")
    parser.add_argument("--time-compression", type=float, default=20.0, help="of the alert rules (default: 20)")
    parser.add_argument("--label-share", type=float, default=usual.label_share, help="of the requests (default: 1)")
    options = parser.parse_args(arguments)
    plan = LoopPlan(options.rate, options.pictures, options.label_share, steady_seconds=options.steady_seconds)
    demo = Demo(Console(), Path(STATE_FOLDER_NAME).resolve())
    options_before = read_options(StateFolder.at(demo.state_folder))
    was_up = control.status(demo.state_folder).state is not StackState.STOPPED
    keep = options.keep
    try:
        run(demo, options.source, plan, options.time_compression)
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
            demo.console.print(
                "\nThe stack stays up, with the alert rules of the demo: `semr status` shows it, `semr down` ends it.",
                highlight=False,
            )
        else:
            with demo.console.status("stack down …"):
                control.down(demo.state_folder)
            if demo.state_folder.is_dir():  # the next `semr up` is not to be as fast as this demo
                write_options(StateFolder.at(demo.state_folder), options_before)
            demo.console.print(
                "\nThe stack is down; its data stay in .semr. KEEP=1 make demo leaves it up.", highlight=False
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
