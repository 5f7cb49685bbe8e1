"""Commands for evolution: `app` is `semr evolve`; `history`, `models` and `rollback` are commands of `semr` itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from semr.errors import SemrError

_ROLLBACK_SECONDS = 300.0
_DEFAULT_ADDRESS = ("127.0.0.1", 8500)

app = typer.Typer(name="evolve", help="Retrain models by policy, and hold them back.", no_args_is_help=True)

_Model = Annotated[str, typer.Argument(help="Registered model.")]
_Reason = Annotated[str, typer.Option("--reason", help="For the audit trail.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def serve(
    policy: Annotated[Path, typer.Option("--policy", envvar="SEMR_EVOLUTION_POLICY", help="Policy file.")],
    folder: Annotated[
        Path, typer.Option("--dir", envvar="SEMR_EVOLUTION_DIR", help="Folder of ledger and logs.")
    ] = Path(".semr/data/evolution"),
    listen: Annotated[
        str, typer.Option(help="HOST:PORT; default: that of SEMR_EVOLUTION_URL.", show_default=False)
    ] = "",
    launcher: Annotated[
        str, typer.Option(help="auto, local or flyte; auto: flyte when there is an endpoint.")
    ] = "auto",
) -> None:
    """Run the evolution service."""
    import logging  # noqa: PLC0415

    from semr.evolution.service import ServiceOptions  # noqa: PLC0415
    from semr.evolution.service import serve as run  # noqa: PLC0415
    from semr.settings import load_settings  # noqa: PLC0415

    if launcher not in ("auto", "local", "flyte"):
        raise typer.BadParameter(f"{launcher!r} is not auto, local or flyte", param_hint="--launcher")
    settings = load_settings()
    host, port = _address(listen or settings.evolution_url or "")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # It would tell of every probe.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    options = ServiceOptions(policy, folder, host, port, launcher)  # type: ignore[arg-type]
    run(options, settings)


@app.command()
def now(
    model: _Model,
    reason: _Reason = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 1 when it failed.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for --wait.")] = 3600.0,
) -> None:
    """Retrain MODEL now; cooldown, budget and quiet hours do not hold a person."""
    from semr.evolution.client import EvolutionClient  # noqa: PLC0415

    with EvolutionClient() as client:
        launch = client.retrain(model, reason)
        typer.echo(f"Launch {launch['id']} of {model} is queued: `semr history {model}` shows it.")
        if wait:
            _report(client.wait(launch["id"], timeout))


@app.command()
def pause(model: _Model, reason: _Reason = "") -> None:
    """Launch nothing for MODEL until it is resumed; a launch that runs goes on."""
    from semr.evolution.client import EvolutionClient  # noqa: PLC0415

    with EvolutionClient() as client:
        changed = client.pause(model, reason)
    typer.echo(f"{model} is paused." if changed else f"{model} was paused already.")


@app.command()
def resume(model: _Model, reason: _Reason = "") -> None:
    """End the pause of MODEL."""
    from semr.evolution.client import EvolutionClient  # noqa: PLC0415

    with EvolutionClient() as client:
        changed = client.resume(model, reason)
    typer.echo(f"{model} is resumed." if changed else f"{model} was not paused.")


def history(
    model: _Model,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Number of newest records.")] = 100,
    as_json: _Json = False,
) -> None:
    """Show what was decided about MODEL, as a timeline."""
    from semr.evolution.audit import AuditRecord  # noqa: PLC0415
    from semr.evolution.client import EvolutionClient  # noqa: PLC0415
    from semr.evolution.timeline import timeline_line  # noqa: PLC0415

    with EvolutionClient() as client:
        found = client.history(model, limit)
    if as_json:
        typer.echo(json.dumps(found["records"], indent=2))
        return
    for record in found["records"]:
        typer.echo(timeline_line(AuditRecord(**record)))
    if not found["records"]:
        typer.echo(f"Nothing was decided about {model} yet.")
    if found["missing"]:
        typer.echo(f"Older records are not shown, since the object store is away: {found['missing']}", err=True)


def models(as_json: _Json = False) -> None:
    """Show the models of the policy: champion, pause, launches."""
    from semr.evolution.client import EvolutionClient  # noqa: PLC0415

    with EvolutionClient() as client:
        found = client.models()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for model in found:
        typer.echo(_model_line(model))


def rollback(
    model: _Model,
    version: Annotated[str | None, typer.Argument(help="Version; default: the one before the champion.")] = None,
    reason: _Reason = "",
) -> None:
    """Serve an earlier version of MODEL again and make it the champion."""
    from semr.evolution.client import EvolutionClient  # noqa: PLC0415

    with EvolutionClient() as client:
        launch = client.roll_back(model, version, reason)
        _report(client.wait(launch["id"], _ROLLBACK_SECONDS))


def _model_line(model: dict[str, Any]) -> str:
    aliases = model["aliases"]
    if aliases is None:
        versions = f"versions unknown ({model['problem']})"
    else:
        versions = ", ".join(f"{alias} {version}" for alias, version in sorted(aliases.items())) or "no version yet"
    budget = f"{model['launches_within_a_day']} of {model['max_launches_per_day']} launches today"
    active = model["active_launch"]
    if active is not None:
        state = f"{active['action']} {active['state']}" + (f" ({active['detail']})" if active["detail"] else "")
    elif model["paused"] is not None:
        state = f"paused ({model['paused']})"
    else:
        last = model["last_launch"]
        state = f"idle, last {last['action']} {last['state']}" if last else "idle"
    return f"{model['model']}  {versions}  {state}  {budget}"


def _report(launch: dict[str, Any]) -> None:
    outcome = launch["outcome"]
    text = f"Launch {launch['id']}: {outcome['verdict']}: {outcome['reason']}"
    if outcome["verdict"] == "failed":
        raise SemrError(text)
    typer.echo(text)


def _address(text: str) -> tuple[str, int]:
    if not text:
        return _DEFAULT_ADDRESS
    parts = urlsplit(text if "//" in text else f"//{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT", param_hint="--listen")
    return host, port
