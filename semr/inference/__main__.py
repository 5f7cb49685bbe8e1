"""Serve a model alone, without Ray: `python -m semr.inference --model models:/mnist@champion --follow`.

Options that are not given here come from the environment, as SEMR_INFERENCE_<OPTION>; where MLflow is stands in the
contract, SEMR_MLFLOW_URI.
"""

from __future__ import annotations

import argparse
import logging
import sys

from semr.errors import InvalidInputError, SemrError
from semr.inference.options import load_options
from semr.inference.source import parse_source
from semr.inference.standalone import HostConfig, listen, serve, set_up_logging
from semr.settings import get_settings

logger = logging.getLogger("semr.inference")

_POLL_SECONDS = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    set_up_logging()
    try:
        config = _config(options)
        listener = listen(options.host, options.port)
        host, port = listener.getsockname()[:2]
        logger.info("%s is served on http://%s:%d", config.source.uri, f"[{host}]" if ":" in host else host, port)
        serve(config, listener)
    except SemrError as error:
        print(f"semr.inference: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m semr.inference",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, metavar="URI", help="models:/NAME@ALIAS, models:/NAME/VERSION, or any URI of MLflow"
    )
    parser.add_argument("--name", help="name to serve it under (default: the registered name, or the end of the URI)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on, 0 for any (default: 8080)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port (default: 1)")
    parser.add_argument("--follow", action="store_true", help="switch to the version that the alias moves to")
    parser.add_argument(
        "--poll", type=float, default=_POLL_SECONDS, metavar="SECONDS", help="between looks at the alias (default: 5)"
    )
    parser.add_argument("--runtime", choices=("auto", "onnx", "native"), help="what computes (default: auto)")
    parser.add_argument(
        "--threads", type=int, help="threads of the model in all processes (default: the cores there are)"
    )
    parser.add_argument("--queue", type=int, help="requests at once, before 503 (default: 256)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="longest wait for an answer (default: 30)")
    parser.add_argument(
        "--grace", type=float, metavar="SECONDS", help="for requests in flight at the end (default: 30)"
    )
    parser.add_argument(
        "--extension", action="append", metavar="MODULE", help="module that adds paths; may be given several times"
    )
    parser.add_argument("--no-access-log", action="store_true", help="do not log every request to standard output")
    return parser


def _config(options: argparse.Namespace) -> HostConfig:
    source = parse_source(options.model, options.name)
    if options.follow and source.alias is None:
        raise InvalidInputError(f"{options.model} is one version: --follow needs an alias, as models:/NAME@champion.")
    if options.workers < 1 or options.poll <= 0:
        raise InvalidInputError("--workers must be at least 1, and --poll above 0.")
    return HostConfig(
        source=source,
        options=load_options(
            runtime=options.runtime,
            threads=options.threads,
            queue=options.queue,
            timeout_s=options.timeout,
            grace_s=options.grace,
            extensions=tuple(options.extension) if options.extension else None,
            access_log=not options.no_access_log,
        ),
        settings=get_settings(),
        poll_seconds=options.poll if options.follow else None,
        workers=options.workers,
    )


if __name__ == "__main__":
    sys.exit(main())
