"""What a judge's job measures of each model version beside its scores: files, signature, time of a call."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_TIMED_CALLS = 50

#: Inputs (rows, ...) to outputs (rows, ...).
Forward = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def latencies(networks: Mapping[str, Forward], one: npt.NDArray[Any]) -> dict[str, float]:
    """Median milliseconds of a call with one example (1, ...), measured in turns so that all meet the same neighbours."""
    taken: dict[str, list[float]] = {version: [] for version in networks}
    for call in range(_TIMED_CALLS + 1):
        for version, network in networks.items():
            started = time.perf_counter()
            network(one)
            if call:
                taken[version].append(time.perf_counter() - started)
    return {version: float(np.median(seconds)) * 1000 for version, seconds in taken.items()}


def in_batches(network: Forward, inputs: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """The network's answers to `inputs`, at most `rows` of them in one call."""
    return np.concatenate([network(inputs[start : start + rows]) for start in range(0, len(inputs), rows)])


def size_bytes(folder: Path) -> int:
    """Bytes of all files of a model."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def schema(folder: Path) -> str:
    """Inputs and outputs of the signature of a model saved by MLflow, comparable as text."""
    from mlflow.models import Model  # noqa: PLC0415

    signature = Model.load(str(folder)).signature
    return json.dumps([signature.inputs.to_dict(), signature.outputs.to_dict()])
