"""What the QoE workflow replaces, faithfully slow: windows in a Python loop, arrays as text in CSV, batches of 10."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

Values = npt.NDArray[np.float64]


def windows_as_text(values: Values, steps: int, path: Path) -> None:
    """Windows of (rows, columns) and the step after each, one row of CSV each, as the text of lists."""
    scaled = (values - values.mean(axis=0)) / np.where(values.std(axis=0) > 0, values.std(axis=0), 1.0)
    inputs, targets = [], []
    for start in range(len(scaled) - steps):
        inputs.append(scaled[start : start + steps].tolist())
        targets.append(scaled[start + steps].tolist())
    pd.DataFrame({"x": [str(each) for each in inputs], "y": [str(each) for each in targets]}).to_csv(path, index=False)


def windows_from_text(path: Path) -> tuple[Values, Values]:
    """What `windows_as_text` wrote, each cell evaluated as Python."""
    table = pd.read_csv(path)
    inputs = np.array([eval(text) for text in table["x"]])
    targets = np.array([eval(text) for text in table["y"]])
    return inputs, targets


def train_keras(inputs: Values, targets: Values, hidden: int, seconds: float) -> tuple[float, object]:
    """An LSTM by `fit` in batches of 10 on as many windows as last about `seconds`; windows a second, and the model."""
    import keras  # noqa: PLC0415 - takes seconds

    model = keras.Sequential(
        [keras.Input(inputs.shape[1:]), keras.layers.LSTM(hidden), keras.layers.Dense(targets.shape[1])]
    )
    model.compile(optimizer="adam", loss="mse")
    model.fit(inputs[:100], targets[:100], batch_size=10, verbose=0)  # builds the graph
    rows = 1000
    started = time.perf_counter()
    model.fit(inputs[:rows], targets[:rows], batch_size=10, verbose=0)
    taken = time.perf_counter() - started
    rows = int(min(len(inputs), max(1000, rows * seconds / taken)))
    started = time.perf_counter()
    model.fit(inputs[:rows], targets[:rows], batch_size=10, verbose=0)
    return rows / (time.perf_counter() - started), model
