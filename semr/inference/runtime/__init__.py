"""From an MLflow model to batch predictions on arrays: one module for each framework's own path, one interface."""

from semr.inference.runtime.loading import load, load_version
from semr.inference.runtime.model import Cost, InvalidRequestError, LoadedModel, ModelLoadError, ModelOutputError

__all__ = [
    "Cost",
    "InvalidRequestError",
    "LoadedModel",
    "ModelLoadError",
    "ModelOutputError",
    "load",
    "load_version",
]
