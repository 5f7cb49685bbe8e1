"""How earlier systems serve a Keras model: FastAPI in debug mode, and `keras.Model.predict` for each request."""

from __future__ import annotations

import os
from typing import Any

import mlflow.tensorflow
import numpy as np
from fastapi import FastAPI

app = FastAPI(debug=True)
_model = mlflow.tensorflow.load_model(os.environ["BENCH_MODEL"])


@app.get("/health")
def health() -> dict[str, bool]:
    """Whether it is up."""
    return {"up": True}


@app.post("/predict")
def predict(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request to infer, as a plain dictionary."""
    tensor = request["inputs"][0]
    array = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
    return {"predictions": _model.predict(array, verbose=0).tolist()}
