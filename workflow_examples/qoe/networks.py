"""The networks themselves; see `model`, which is imported where PyTorch is not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from workflow_examples.qoe.model import ModelConfig


class Forecaster(nn.Module):
    """Last step plus what the body makes of the window; windows may be flat (batch, steps * columns)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.steps, self.columns = config.steps, config.columns
        bodies = {"lstm": _Recurrent, "tcn": _Convolutional, "linear": _Linear}
        self.body: nn.Module = bodies[config.architecture](config)
        self.head = nn.Linear(
            config.steps * config.columns if config.architecture == "linear" else config.hidden, config.columns
        )
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, window: Tensor) -> Tensor:
        """(batch, steps, columns) to (batch, columns)."""
        window = window.reshape(-1, self.steps, self.columns)
        last = window[:, -1]
        # The level goes in beside the shape: a rise means another thing in the morning than at noon.
        forecast: Tensor = last + self.head(self.body(window))
        return forecast


class Scaled(nn.Module):
    """A network between raw and scaled values."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, window: Tensor) -> Tensor:
        """Raw (batch, steps, columns) to raw (batch, columns)."""
        forecast: Tensor = self.network((window - self.mean) / self.std) * self.std + self.mean
        return forecast


class _Recurrent(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(config.columns, config.hidden, config.layers, batch_first=True)

    def forward(self, window: Tensor) -> Tensor:
        states, _ = self.lstm(window)
        last: Tensor = states[:, -1]
        return last


class _Convolutional(nn.Module):
    """Causal convolutions of width 3, dilated by powers of two, each with a shortcut."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.columns, *[config.hidden] * config.layers]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, 3, dilation=2**index)
            for index, (before, after) in enumerate(itertools.pairwise(widths))
        )
        self.shortcuts = nn.ModuleList(nn.Conv1d(before, after, 1) for before, after in itertools.pairwise(widths))

    def forward(self, window: Tensor) -> Tensor:
        signal = window.transpose(1, 2)
        for index, (layer, shortcut) in enumerate(zip(self.layers, self.shortcuts, strict=True)):
            padded = nn.functional.pad(signal, (2 * 2**index, 0))
            signal = torch.relu(layer(padded)) + shortcut(signal)
        return signal[:, :, -1]


class _Linear(nn.Module):
    """The window itself; one layer on it is a linear autoregression."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def forward(self, window: Tensor) -> Tensor:
        return torch.flatten(window, 1)
