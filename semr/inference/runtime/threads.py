"""How many threads computing takes: as many as the process was given cores, and no more."""

from __future__ import annotations

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def available_cores() -> int:
    """Cores that this process may use: its CPU affinity, and the quota of its control group (a container's limit)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def limit_numeric_libraries(count: int) -> None:
    """Limit BLAS and OpenMP libraries that are loaded, as scikit-learn and NumPy use them."""
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - comes with scikit-learn

    threadpool_limits(count)


def limit_tensorflow(count: int) -> None:
    """Limit TensorFlow; only before its first computation, later calls change nothing."""
    import tensorflow as tf  # noqa: PLC0415

    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        logger.debug("TensorFlow is running, so its threads stay as they are")


def limit_torch(count: int) -> None:
    """Limit PyTorch's threads within an operation."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(count)


def _quota() -> float | None:
    """Cores of the control group's CPU quota (v2, else v1), None when there is none."""
    try:
        if _CGROUP_V2.is_file():
            quota, period = _CGROUP_V2.read_text().split()
            return None if quota == "max" else int(quota) / int(period)
        quota_us = int((_CGROUP_V1 / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else quota_us / int((_CGROUP_V1 / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
