"""The process group of PyTorch's workers, reachable on the node's address in the Ray cluster alone.

What `init_process_group` sets up by itself listens on every network interface, without any authentication.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil

# The longest that workers may lie apart: one may still be reading data while another waits for it.
_TIMEOUT = timedelta(seconds=600)


def trainer_options() -> dict[str, Any]:
    """Ray Train's TorchTrainer, which leaves the group to `join_torch_workers`."""
    from ray.train.backend import Backend  # noqa: PLC0415 - only a job's driver needs it
    from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

    class OwnGroup(TorchConfig):  # type: ignore[misc,unused-ignore]
        @property
        def backend_cls(self) -> Any:  # noqa: ANN401 - a Backend
            return Backend

    return {"trainer": TorchTrainer, "torch_config": OwnGroup(backend="gloo")}


@contextmanager
def join_torch_workers() -> Iterator[tuple[int, int]]:
    """The default process group (gloo) of the Ray Train workers, for as long as the block takes; yields rank and size.

    To be called by each worker in its training function.
    """
    import ray.train  # noqa: PLC0415
    import ray.util  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415
    from ray.train.collective import broadcast_from_rank_zero  # noqa: PLC0415

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    address = ray.util.get_node_ip_address()
    os.environ["GLOO_SOCKET_IFNAME"] = _interface_of(address)
    listener = socket.create_server((address, 0)) if rank == 0 else None
    host, port = broadcast_from_rank_zero(listener.getsockname()[:2] if listener else None)
    store = dist.TCPStore(
        host,
        port,
        size,
        is_master=rank == 0,
        timeout=_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener else None,
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    try:
        yield rank, size
    finally:
        dist.destroy_process_group()


def _interface_of(address: str) -> str:
    """Name of the network interface that has the address, as `lo`."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    raise OSError(f"no network interface of this machine has the address {address}")
