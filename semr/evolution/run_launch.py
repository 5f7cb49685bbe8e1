"""The process of a local launch: `python -m semr.evolution.run_launch LEDGER LAUNCH_ID`.

It detaches itself, claims the launch in the ledger, runs the workflow (Flyte's local execution) and writes down how it ended.
A process that comes second finds the launch claimed and ends. Nothing heavy is imported before the claim.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path

from semr.errors import InvalidInputError
from semr.evolution.launch import Launch, Outcome, failed, parse_outcome
from semr.evolution.launches import Ledger

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Entry point; the exit code is of use to nobody, since nobody waits."""
    path, launch_id = arguments
    detach()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ledger = Ledger(Path(path))
    launch = ledger.claim(launch_id, os.getpid())
    if launch is None:
        logger.info("launch %s is not to be run: another process has it, or it has ended", launch_id)
        return 0
    outcome = run(launch)
    logger.info("launch %s: %s: %s", launch_id, outcome.verdict, outcome.reason)
    ledger.finish(launch_id, outcome)
    return 0


def detach() -> None:
    """Go on in a process that is no descendant of the caller and leads a session of its own; the first one ends with 0."""
    if os.fork():
        os._exit(0)
    os.setsid()


def run(launch: Launch) -> Outcome:
    """Do what the launch asks for in this process; whatever goes wrong is an outcome."""
    try:
        if launch.action == "rollback":
            from semr.evolution.rollback import roll_back  # noqa: PLC0415 imports MLflow

            inputs = launch.inputs
            # A launch that was queued before an upgrade names no target.
            target = inputs.get("deployment_target", "")
            return roll_back(launch.model, inputs["version"] or None, launch.trigger.reason, target=target)
        return parse_outcome(_workflow_result(launch))
    except Exception as error:
        # The workflow's own code may raise anything; the log has the trace, the ledger a sentence.
        logger.exception("launch %s failed", launch.id)
        return failed(f"{type(error).__name__}: {error}")


def _workflow_result(launch: Launch) -> object:
    plan = launch.plan.get("local")
    if plan is None:
        raise InvalidInputError("The policy has no local plan for this model: add launch.local.")
    module = importlib.import_module(plan["module"])
    workflow = getattr(module, plan["workflow"], None)
    if workflow is None:
        raise InvalidInputError(f"Module {plan['module']} has no workflow {plan['workflow']!r}: correct launch.local.")
    return workflow(**launch.inputs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
