"""SEMR: a self-evolving AI/ML workflow system on Ray, MLflow, Flyte, Prometheus and an S3 object store."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("semr")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
