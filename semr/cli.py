"""`semr`: the command line.

Modules are imported where a command needs them, so that `semr --help` answers at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semr.errors import InvalidInputError, SemrError
from semr.evolution import cli as evolution
from semr.extras import STACK, missing_extra, need

if TYPE_CHECKING:
    from types import FrameType, ModuleType

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    name="semr",
    help="SEMR: a self-evolving AI/ML workflow system on this machine or on a cluster.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Folder = Annotated[
    Path | None,
    typer.Option(
        "--dir", envvar="SEMR_STATE_DIR", help="State folder of the stack; default: .semr.", show_default=False
    ),
]


@app.callback(invoke_without_command=True)
def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _folder(given: Path | None) -> Path:
    from semr.stack.state import default_folder  # noqa: PLC0415

    return given if given is not None else default_folder()


@app.command()
def up(
    folder: _Folder = None,
    mlflow_backend_uri: Annotated[
        str | None,
        typer.Option(
            envvar="SEMR_STACK_MLFLOW_BACKEND_URI",
            help="SQLAlchemy URL of MLflow's database; default: SQLite in the state folder.",
            show_default=False,
            show_envvar=True,
        ),
    ] = None,
    ray_object_store_mb: Annotated[
        int | None, typer.Option(min=80, help="Megabytes of shared memory for Ray's objects; default: 400.")
    ] = None,
    ray_cpus: Annotated[
        int | None, typer.Option(min=1, help="Logical CPUs of Ray; default: those of the machine, at least 4.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy of the evolution service; default: the MNIST example's.", show_default=False),
    ] = None,
    time_compression: Annotated[
        float | None,
        typer.Option(min=1, max=1000, help="Divide every duration in the alert rules, for demonstrations; default: 1."),
    ] = None,
) -> None:
    """Start the embedded stack and wait until every service is healthy."""
    from semr.settings import STATE_FOLDER_NAME  # noqa: PLC0415
    from semr.stack.control import up as bring_up  # noqa: PLC0415
    from semr.stack.disk import disk_shortage  # noqa: PLC0415
    from semr.stack.display import show_progress  # noqa: PLC0415
    from semr.stack.state import StackOptions  # noqa: PLC0415

    need(STACK)
    if policy is not None and not policy.is_file():
        raise InvalidInputError(f"There is no policy file {policy}.")
    policy_path = str(policy.resolve()) if policy is not None else None
    options = StackOptions(mlflow_backend_uri, ray_object_store_mb, ray_cpus, policy_path, time_compression)
    state_folder = folder or Path.cwd() / STATE_FOLDER_NAME
    with show_progress() as progress:
        bring_up(state_folder, options, progress)
    typer.echo("The stack is up: `semr status` shows it, `semr env` prints its settings, `semr down` stops it.")
    if shortage := disk_shortage(state_folder):
        typer.echo(f"Warning: {shortage}. Free some of {state_folder}'s disk.", err=True)


@app.command()
def status(
    folder: _Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show every service; exit code 1 unless all are healthy."""
    from semr.stack.control import status as ask  # noqa: PLC0415
    from semr.stack.display import print_status  # noqa: PLC0415

    current = ask(_folder(folder))
    if as_json:
        typer.echo(current.to_json())
    else:
        print_status(current)
    if not current.healthy:
        raise typer.Exit(1)


@app.command()
def down(
    folder: _Folder = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove all data and credentials as well.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before removing data.")] = False,
) -> None:
    """Stop the embedded stack; data stay."""
    from semr.stack.control import down as take_down  # noqa: PLC0415

    path = _folder(folder)
    if purge and not yes:
        typer.confirm(f"Remove {path} with all datasets, models and metrics in it?", abort=True)
    ended = take_down(path, purge=purge)
    typer.echo("The stack is down." if ended else "The stack was not up.")
    if purge:
        typer.echo(f"{path} is removed.")


@app.command()
def logs(
    service: Annotated[str, typer.Argument(help="Name of the service as in `semr status`, or supervisor.")],
    folder: _Folder = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of last lines.")] = 50,
) -> None:
    """Print the log of a service."""
    from semr.stack import log_files  # noqa: PLC0415
    from semr.stack.state import StateFolder  # noqa: PLC0415
    from semr.stack.status import SERVICE_NAMES  # noqa: PLC0415

    known = (*SERVICE_NAMES, "supervisor")
    if service not in known:
        raise InvalidInputError(f"There is no service {service}: name one of {', '.join(known)}.")
    path = StateFolder.at(_folder(folder)).log(service)
    if not path.exists() and not follow:
        raise InvalidInputError(f"{service} has no log in {path.parent}: start the stack with `semr up`.")
    for line in log_files.follow(path, lines) if follow else log_files.tail(path, lines):
        typer.echo(line)


@app.command()
def env(folder: _Folder = None) -> None:
    """Print the settings and credentials of the stack for a shell: eval "$(semr env)"."""
    from semr.stack.control import settings as read_settings  # noqa: PLC0415

    settings = read_settings(_folder(folder))
    for name, value in {**settings.contract(), **settings.client_environment()}.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
_Example = Annotated[str, typer.Argument(help="Name of a workflow example, such as mnist.")]


@app.command(context_settings=_PASS_ON)
def data(context: typer.Context, name: _Example) -> None:
    """Bring an example's data into the object store; all other arguments are the example's own (try --help)."""
    raise typer.Exit(_example(name, "data").main(context.args))


@app.command(context_settings=_PASS_ON)
def traffic(context: typer.Context, name: _Example) -> None:
    """Send an example's model live traffic, with drift on demand; all other arguments are the example's own."""
    raise typer.Exit(_example(name, "traffic").main(context.args))


@app.command()
def report(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Page to write; default: MODEL-evolution.html.", show_default=False),
    ] = None,
    hours: Annotated[float, typer.Option(min=0.1, help="How far back the curves reach.")] = 24.0,
) -> None:
    """Write the evolution of a model as one self-contained HTML page."""
    from semr.evolution.audit import AuditTrail  # noqa: PLC0415
    from semr.evolution.report import write_report  # noqa: PLC0415
    from semr.monitoring.prometheus import Prometheus  # noqa: PLC0415
    from semr.registry import Registry  # noqa: PLC0415
    from semr.storage import ObjectStore  # noqa: PLC0415

    path = (output or Path(f"{model}-evolution.html")).resolve()
    write_report(model, path, AuditTrail(ObjectStore.from_settings()), Registry(), Prometheus(), hours)
    typer.echo(str(path))


app.add_typer(evolution.app, name="evolve")
app.command()(evolution.history)
app.command()(evolution.models)
app.command()(evolution.rollback)


def _example(name: str, part: str) -> ModuleType:
    module = f"workflow_examples.{name}.{part}"
    if not name.isidentifier() or not _exists(module):
        raise InvalidInputError(f"There is no example {name}: name a folder of workflow_examples that has a {part}.py.")
    return importlib.import_module(module)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _run_command() -> None:
    try:
        app()
    except ModuleNotFoundError as error:
        named = missing_extra(error)
        raise named or error from error


def main() -> None:
    """Entry point: every `SemrError` becomes one line on standard error and its exit code; Ctrl-C gives 130."""
    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    # A stack that is being started must not survive the `semr up` that was told to end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        _run_command()
    except SemrError as error:
        tail = getattr(error, "log_tail", "")
        if tail:
            typer.echo(tail, err=True)
        typer.echo(f"semr: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # Typer ends with 1 after an interrupt.
        sys.exit(_INTERRUPTED if interrupted else end.code)


if __name__ == "__main__":
    main()
