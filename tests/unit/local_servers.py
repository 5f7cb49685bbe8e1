"""Ports for servers that tests start, and their end."""

from __future__ import annotations

import contextlib
import socket

import psutil

STOP_SECONDS = 3


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses; all are held at once, so that they differ."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def stop_with_children(pid: int) -> None:
    """End the process and all that it started, and make sure that none is left."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for member in alive:
        member.kill()
    _, alive = psutil.wait_procs(alive, timeout=STOP_SECONDS)
    assert not alive, f"left behind: {alive}"
