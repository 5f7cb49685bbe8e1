"""The QoE forecasters: from a window of past steps to the step `horizon` later, for all columns at once.

All of them forecast the difference to the last step seen, and begin with none: before its first training step each is the
persistence forecast (Zeng et al., "Are Transformers Effective for Time Series Forecasting?", AAAI 2023, for the linear one).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError
from workflow_examples.qoe.features import Scaling

if TYPE_CHECKING:
    from torch import nn

Architecture = Literal["lstm", "tcn", "linear"]
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and how large.

    Attributes:
        architecture: `lstm`; `tcn`, a temporal convolutional network (Bai et al., "An Empirical Evaluation of Generic
            Convolutional and Recurrent Networks for Sequence Modeling", 2018); `linear`.
        steps: of the window.
        columns: measures in each step.
        hidden: units in a layer.
        layers: recurrent or convolutional layers; of the latter each sees twice as far back.
    """

    architecture: str = "lstm"
    steps: int = 10
    columns: int = 2
    hidden: int = 64
    layers: int = 1

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InvalidInputError(f"There is no architecture {self.architecture!r}: name {', '.join(ARCHITECTURES)}.")
        if min(self.steps, self.columns, self.hidden, self.layers) < 1:
            raise InvalidInputError("steps, columns, hidden and layers must be at least 1.")


def build_model(config: ModelConfig) -> nn.Module:
    """A network from scaled windows (batch, steps, columns) float32 to scaled forecasts (batch, columns)."""
    from workflow_examples.qoe import networks  # noqa: PLC0415 - PyTorch takes seconds, and tasks need names only

    return networks.Forecaster(config)


def served_model(network: nn.Module, scaling: Scaling) -> nn.Module:
    """The network from raw windows to raw forecasts: clients know nothing of the scaling."""
    from workflow_examples.qoe import networks  # noqa: PLC0415

    return networks.Scaled(network, scaling.mean, scaling.std)


def to_example(batch: Mapping[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Columns `window` and `target` as windows (batch, steps * columns) and targets (batch, columns)."""
    return np.stack(list(batch["window"])), np.stack(list(batch["target"]))
