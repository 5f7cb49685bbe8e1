"""The group of training workers: sums over real sockets, and what happens to those who do not belong or leave."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from semr.training.group import GroupError, Meeting, WorkerGroup

TOKEN = "ab" * 32


@contextmanager
def group_of(size: int, before: Callable[[Meeting], None] = lambda _: None) -> Iterator[list[WorkerGroup]]:
    """A group of `size` members in this process; `before` runs before the others join."""
    members = [WorkerGroup(rank, size) for rank in range(size)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        meeting = Meeting("127.0.0.1", listener.getsockname()[1], TOKEN)
        accepting = threading.Thread(target=members[0].accept, args=(listener, TOKEN))
        accepting.start()
        before(meeting)
        for member in reversed(members[1:]):
            member.join(meeting)
        accepting.join()
    try:
        yield members
    finally:
        for member in members:
            member.close()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_everyone_gets_the_same_sum(size: int) -> None:
    vectors = [np.random.default_rng(rank).normal(size=(300, 700)).astype(np.float32) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        if size == 1:
            sums = [WorkerGroup(0, 1).sum(vectors[0])]
        else:
            with group_of(size) as members:
                for _ in range(3):
                    sums = list(pool.map(WorkerGroup.sum, members, vectors))
    assert all(each.tobytes() == sums[0].tobytes() for each in sums)
    assert sums[0].shape == (300, 700)
    np.testing.assert_allclose(sums[0], np.sum(vectors, axis=0), rtol=1e-5, atol=1e-5)


def test_the_mean_is_the_sum_divided() -> None:
    with group_of(2) as members, ThreadPoolExecutor(2) as pool:
        means = list(pool.map(WorkerGroup.mean, members, [np.float32([1, 2]), np.float32([3, 6])]))
    assert [mean.tolist() for mean in means] == [[2, 4], [2, 4]]


def test_strangers_are_turned_away() -> None:
    def strangers(meeting: Meeting) -> None:
        for shown in (b"", b"GET / HTTP/1.1\r\n\r\n" + b"x" * 64, bytes(32) + (1).to_bytes(8, "big")):
            # It may be turned away before it has said all.
            with socket.create_connection((meeting.host, meeting.port)) as connection, contextlib.suppress(OSError):
                connection.sendall(shown)
                connection.shutdown(socket.SHUT_WR)
        with socket.create_connection((meeting.host, meeting.port)) as connection:
            connection.sendall(bytes.fromhex(TOKEN) + (7).to_bytes(8, "big"))  # no such rank

    with group_of(2, strangers) as members, ThreadPoolExecutor(2) as pool:
        assert [each.tolist() for each in pool.map(WorkerGroup.sum, members, [np.float32([1])] * 2)] == [[2], [2]]


@pytest.mark.parametrize("gone", [0, 1])
def test_a_worker_that_leaves_is_noticed_at_once(gone: int) -> None:
    with group_of(2) as members:
        members[gone].close()
        with pytest.raises(GroupError, match="lost its group"):
            for _ in range(2):
                members[1 - gone].sum(np.zeros(100_000, np.float32))


def test_workers_out_of_step_are_noticed() -> None:
    with group_of(2) as members, ThreadPoolExecutor(2) as pool:
        asking = pool.submit(members[1].sum, np.zeros(2, np.float32))
        with pytest.raises(GroupError, match="out of step"):
            members[0].sum(np.zeros(3, np.float32))
        members[0].close()
        with pytest.raises(GroupError):
            asking.result()
