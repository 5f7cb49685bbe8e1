from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from semr.stack.ports import MOVED_PORTS, PortOwner, PortRequest, allocate, is_free


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def other_owner() -> Iterator[PortOwner]:
    """A living process that is not this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield PortOwner(process.pid, psutil.Process(process.pid).create_time())
    process.kill()
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_listener_makes_a_port_busy(busy_port: int) -> None:
    assert not is_free(busy_port)


def test_listener_on_all_interfaces_makes_a_port_busy() -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        assert not is_free(listener.getsockname()[1])


def test_privileged_port_is_not_an_error() -> None:
    assert is_free(81) in (True, False)


def test_preferred_port_is_taken_when_free(tmp_path: Path) -> None:
    port = _free_port()
    assert allocate([PortRequest("a", port)], {}, PortOwner.this_process(), tmp_path) == {"a": port}


def test_busy_port_is_moved(tmp_path: Path, busy_port: int) -> None:
    chosen = allocate([PortRequest("a", busy_port)], {}, PortOwner.this_process(), tmp_path)
    assert chosen["a"] in MOVED_PORTS


def test_recorded_port_wins_while_it_is_free(tmp_path: Path, busy_port: int) -> None:
    recorded = _free_port()
    requests = [PortRequest("a", _free_port()), PortRequest("b")]
    chosen = allocate(requests, {"a": recorded, "b": busy_port}, PortOwner.this_process(), tmp_path)
    assert chosen["a"] == recorded
    assert chosen["b"] in MOVED_PORTS


def test_moving_one_port_leaves_the_others(tmp_path: Path, busy_port: int) -> None:
    requests = [PortRequest(name) for name in "abc"]
    first = allocate(requests, {}, PortOwner.this_process(), tmp_path)
    moved = allocate(requests, {**first, "a": busy_port}, PortOwner.this_process(), tmp_path)
    assert {name: moved[name] for name in "bc"} == {name: first[name] for name in "bc"}
    assert moved["a"] != busy_port


def test_all_ports_differ_and_twins_are_kept_free(tmp_path: Path) -> None:
    requests = [PortRequest("a"), PortRequest("b", twin_offset=1), PortRequest("c"), PortRequest("d", twin_offset=1)]
    chosen = allocate(requests, {}, PortOwner.this_process(), tmp_path)
    claims = [port for request in requests for port in request.claims(chosen[request.name])]
    assert len(claims) == len(set(claims)) == 6


def test_ports_promised_to_a_living_stack_are_not_given_again(tmp_path: Path, other_owner: PortOwner) -> None:
    requests = [PortRequest(name) for name in "abcdef"]
    theirs = allocate(requests, {}, other_owner, tmp_path)
    mine = allocate(requests, theirs, PortOwner.this_process(), tmp_path)
    assert set(mine.values()).isdisjoint(theirs.values())


def test_promise_ends_with_its_process(tmp_path: Path, other_owner: PortOwner) -> None:
    theirs = allocate([PortRequest("a")], {}, other_owner, tmp_path)
    os.kill(other_owner.pid, 9)
    psutil.Process(other_owner.pid).wait()
    assert allocate([PortRequest("a")], {}, PortOwner.this_process(), tmp_path) == theirs


def test_reused_pid_holds_no_promise(tmp_path: Path) -> None:
    me = PortOwner.this_process()
    theirs = allocate([PortRequest("a")], {}, PortOwner(me.pid, me.created - 1000), tmp_path)
    assert allocate([PortRequest("a")], {}, me, tmp_path) == theirs


def test_broken_reservation_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f"semr-ports-{os.getuid()}.json").write_text('{"nonsense": [1], "1@x"')
    assert allocate([PortRequest("a")], {}, PortOwner.this_process(), tmp_path)


def test_racing_processes_get_different_ports(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, json; from semr.stack.ports import *\n"
        "requests = [PortRequest(f'p{i}', 21500 if i == 0 else None) for i in range(5)]\n"
        f"print(json.dumps(allocate(requests, {{}}, PortOwner.this_process(), pathlib.Path({str(tmp_path)!r}))))\n"
        "sys.stdout.flush(); input()"
    )

    def run(_number: int) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, process.stdout.readline()

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run, range(3)))
    for process, _ in results:
        process.communicate("\n")
    import json

    ports = [port for _, line in results for port in json.loads(line).values()]
    assert len(ports) == len(set(ports)) == 15
