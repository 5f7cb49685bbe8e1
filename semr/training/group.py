"""The workers of one data-parallel training as a group that adds vectors up: an all-reduce over TCP.

Every worker gives a vector and gets the sum of all, the same bytes everywhere. The worker of rank 0 receives the others'
vectors, adds them in the order of the ranks and sends the sum back. Its traffic grows with the number of workers, which suits
the small groups and models of SEMR; a ring (Patarasuk and Yuan, JPDC 2009) would spread it evenly.

Why not TensorFlow's own collectives: its servers listen on every network interface without any authentication, and whoever
reaches one can run code in it. This group listens on the node's address in the Ray cluster alone, lets in only who knows the
random token that travels through Ray, and carries numbers, never objects. A worker that dies closes its connections, so that
the others fail at once and Ray Train starts the group again.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from semr.errors import SemrError

Vector = npt.NDArray[np.float32]

_TOKEN_BYTES = 32
# Before each vector: its number of elements. After the token: the rank.
_NUMBER = struct.Struct("!Q")
_JOIN_SECONDS = 120.0
# The longest that workers may lie apart: one may still be reading data while another waits for it.
_SUM_SECONDS = 600.0


class GroupError(SemrError):
    """A worker of the group left, did not come, or sent what it should not."""


@dataclass(frozen=True)
class Meeting:
    """Where the worker of rank 0 waits for the others, and what they show it."""

    host: str
    port: int
    token: str


class WorkerGroup:
    """This worker's membership; a group of one adds up without any network."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        # Rank 0: a connection to each other rank in their order. Others: the one to rank 0.
        self._connections: list[socket.socket] = []

    def sum(self, vector: Vector) -> Vector:
        """The sum of all workers' vectors, which have one shape.

        Raises:
            GroupError: another worker is gone, or its vector has another length.
        """
        if self.size == 1:
            return vector
        mine = np.ascontiguousarray(vector, dtype=np.float32).reshape(-1)
        try:
            total = self._gather(mine) if self.rank == 0 else self._ask(mine)
        except OSError as error:
            raise GroupError(f"worker {self.rank} lost its group: {error}") from error
        return total.reshape(vector.shape)

    def mean(self, vector: Vector) -> Vector:
        """The mean of all workers' vectors; see `sum`."""
        return self.sum(vector) / np.float32(self.size)

    def close(self) -> None:
        """Close the connections; the others notice."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _gather(self, mine: Vector) -> Vector:
        total = mine.copy()
        for connection in self._connections:
            total += _receive(connection, mine.size)
        for connection in self._connections:
            _send(connection, total)
        return total

    def _ask(self, mine: Vector) -> Vector:
        (connection,) = self._connections
        _send(connection, mine)
        return _receive(connection, mine.size)

    def accept(self, listener: socket.socket, token: str) -> None:
        """Rank 0: let the others in; whoever does not know the token is turned away.

        Raises:
            GroupError: they did not all come within two minutes.
        """
        deadline = time.monotonic() + _JOIN_SECONDS
        joined: dict[int, socket.socket] = {}
        while len(joined) < self.size - 1:
            listener.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError as error:
                raise GroupError(f"{len(joined) + 1} of {self.size} workers came within {_JOIN_SECONDS:g} s") from error
            rank = _rank_of(connection, token)
            if rank is None or rank in joined or not 0 < rank < self.size:
                connection.close()
                continue
            joined[rank] = _prepared(connection)
        self._connections = [joined[rank] for rank in sorted(joined)]

    def join(self, meeting: Meeting) -> None:
        """Ranks from 1: connect to rank 0.

        Raises:
            GroupError: it does not answer.
        """
        try:
            connection = socket.create_connection((meeting.host, meeting.port), timeout=_JOIN_SECONDS)
            connection.sendall(bytes.fromhex(meeting.token) + _NUMBER.pack(self.rank))
        except OSError as error:
            raise GroupError(f"worker {self.rank} cannot reach worker 0 at {meeting.host}: {error}") from error
        self._connections = [_prepared(connection)]


def join_train_workers() -> WorkerGroup:
    """The group of the Ray Train workers; to be called by each of them in its training function."""
    import ray.train  # noqa: PLC0415 - the group itself needs no Ray
    import ray.util  # noqa: PLC0415
    from ray.train.collective import broadcast_from_rank_zero  # noqa: PLC0415

    context = ray.train.get_context()
    group = WorkerGroup(context.get_world_rank(), context.get_world_size())
    if group.size == 1:
        return group
    if group.rank == 0:
        with socket.create_server((ray.util.get_node_ip_address(), 0)) as listener:
            host, port = listener.getsockname()[:2]
            meeting = Meeting(host, port, secrets.token_hex(_TOKEN_BYTES))
            broadcast_from_rank_zero((meeting.host, meeting.port, meeting.token))
            group.accept(listener, meeting.token)
    else:
        group.join(Meeting(*broadcast_from_rank_zero(None)))
    return group


def _prepared(connection: socket.socket) -> socket.socket:
    connection.settimeout(_SUM_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _rank_of(connection: socket.socket, token: str) -> int | None:
    """The rank that a newcomer shows with the right token, None for anyone else."""
    connection.settimeout(5)
    try:
        shown = _exactly(connection, _TOKEN_BYTES + _NUMBER.size)
    except OSError:
        return None
    if not hmac.compare_digest(bytes(shown[:_TOKEN_BYTES]), bytes.fromhex(token)):
        return None
    return int(_NUMBER.unpack(shown[_TOKEN_BYTES:])[0])


def _send(connection: socket.socket, vector: Vector) -> None:
    connection.sendall(_NUMBER.pack(vector.size))
    connection.sendall(vector.view(np.uint8).data)


def _receive(connection: socket.socket, size: int) -> Vector:
    (theirs,) = _NUMBER.unpack(_exactly(connection, _NUMBER.size))
    if theirs != size:
        raise GroupError(f"the workers are out of step: one sent {theirs} numbers where {size} were expected")
    return np.frombuffer(_exactly(connection, size * 4), dtype=np.float32)


def _exactly(connection: socket.socket, size: int) -> Any:  # noqa: ANN401 - a bytearray; every buffer will do
    content = bytearray(size)
    view = memoryview(content)
    done = 0
    while done < size:
        count = connection.recv_into(view[done:])
        if count == 0:
            raise ConnectionError("another worker has closed its connection")
        done += count
    return content
