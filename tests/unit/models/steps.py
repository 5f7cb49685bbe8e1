"""A model from code for tests: `y` is twice `x`, `rows` the number of rows of the call; some inputs make it misbehave."""

import os
import time

import mlflow
import numpy as np
from mlflow.models import set_model

# What the first column asks for, beside being doubled.
SLEEP = 1000.0
FAIL = 2000.0
NOT_A_NUMBER = 3000.0


class Steps(mlflow.pyfunc.PythonModel):
    """Takes {"x": (rows, 2) float32}."""

    def predict(self, context, model_input, params=None):  # noqa: ANN001, ANN201
        x = model_input["x"]
        first = x[:, 0]
        if (first == FAIL).any():
            raise RuntimeError("secret detail of the model")
        if (first == SLEEP).any():
            time.sleep(float(os.environ.get("STEPS_SLEEP", "3")))
        y = np.where(first[:, None] == NOT_A_NUMBER, np.nan, x * 2).astype(np.float32)
        return {"y": y, "rows": np.full(len(x), len(x), np.int64)}


set_model(Steps())
