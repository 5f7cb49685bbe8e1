"""Load a model version from MLflow and prove on its own input example that it works."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import load_model

from semr import tracking
from semr.errors import DependencyUnavailableError, InvalidInputError
from semr.inference.options import ServerOptions, get_options
from semr.inference.runtime import onnx, onnx_export, probe, threads
from semr.inference.runtime.contract import Contract, read_contract, read_example
from semr.inference.runtime.model import LoadedModel, ModelLoadError
from semr.inference.runtime.native import Backend, native_backend
from semr.inference.tensors import Array, is_finite
from semr.monitoring.classification import TOLERANCE_KEY, parse_tolerance
from semr.registry import ModelVersionRef, Registry
from semr.settings import Settings, get_settings

logger = logging.getLogger(__name__)

#: Keys of an MLflow model's own metadata, by which it declares how it may be served: "off" keeps its rows in calls of their
#: own; a number of calls that may run at once; "true" takes NaN and infinity as input; modules, separated by commas, that add
#: paths of their own to the server (see `semr.inference.app`).
BATCHING_KEY = "semr.batching"
CONCURRENCY_KEY = "semr.concurrency"
NON_FINITE_KEY = "semr.non_finite"
EXTENSIONS_KEY = "semr.extensions"


def load(
    name: str, version_or_alias: str, settings: Settings | None = None, options: ServerOptions | None = None
) -> LoadedModel:
    """Load a registered model version and try it on its own input example.

    Raises:
        ModelNotFoundError: there is no such version.
        ModelLoadError: it has no contract of tensors, cannot be loaded, or fails on its example.
        DependencyUnavailableError: MLflow or the store behind it is away.
    """
    settings = settings or get_settings()
    return load_version(Registry(settings).get(name, version_or_alias), settings, options)


def load_version(
    ref: ModelVersionRef, settings: Settings | None = None, options: ServerOptions | None = None
) -> LoadedModel:
    """`load` for a version that is known, or for a model of any URI that MLflow reads.

    Raises:
        ModelLoadError, DependencyUnavailableError: see `load`.
    """
    settings, options = settings or get_settings(), options or get_options()
    if settings.mlflow_uri is not None:
        tracking.connect(settings)
    parent = Path(tempfile.mkdtemp(prefix="semr-model-"))
    try:
        with tracking.named_errors(settings):
            folder = Path(download_artifacts(ref.uri, dst_path=str(parent)))
            loaded = _open(ref, folder, options)
    except (DependencyUnavailableError, ModelLoadError) as error:
        shutil.rmtree(parent, ignore_errors=True)
        if isinstance(error, ModelLoadError):
            raise ModelLoadError(f"{ref.uri} cannot be loaded: {error}") from error
        raise
    except Exception as error:
        shutil.rmtree(parent, ignore_errors=True)
        if isinstance(error, MlflowException) and error.get_http_status_code() >= 500 and "HTTP" in str(error):
            raise
        # A model is code of its own, so anything can come out of it.
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelLoadError(f"{ref.uri} cannot be loaded: {text}") from error
    # Models may read their files late, so these go when the model does.
    weakref.finalize(loaded, shutil.rmtree, parent, ignore_errors=True)
    return loaded


def _open(ref: ModelVersionRef, folder: Path, options: ServerOptions) -> LoadedModel:
    metadata = Model.load(str(folder))
    contract = read_contract(metadata, folder)
    example = read_example(metadata, folder, contract)
    declared: dict[str, Any] = metadata.metadata or {}
    backend = _backend(ref, metadata, contract, example, folder, options)
    outputs = backend.predict(example)
    takes_non_finite = str(declared.get(NON_FINITE_KEY, "false")).lower() == "true"
    if not takes_non_finite and all(map(is_finite, example.values())) and not all(map(is_finite, outputs.values())):
        raise ModelLoadError("it answers its own input example with NaN or infinity.")
    contract = contract.with_outputs_of(outputs)
    is_batchable = (
        options.batching
        and str(declared.get(BATCHING_KEY, "on")).lower() != "off"
        and probe.are_rows_independent(backend.predict, contract, example)
    )
    loaded = LoadedModel(
        ref=ref,
        platform=backend.platform,
        inputs=contract.inputs,
        outputs=contract.outputs,
        _predict=backend.predict,
        optional=contract.optional,
        is_batchable=is_batchable,
        takes_non_finite=takes_non_finite,
        is_steady=backend.is_steady and all(-1 not in tensor.shape[1:] for tensor in contract.inputs),
        concurrency=_concurrency(declared),
        cost=probe.measure(backend.predict, contract, example, is_batchable),
        tolerance=parse_tolerance(declared.get(TOLERANCE_KEY)),
        extensions=tuple(name.strip() for name in str(declared.get(EXTENSIONS_KEY, "")).split(",") if name.strip()),
    )
    try:
        loaded.check(probe.first_rows(example, contract.inputs, 1))
    except InvalidInputError as error:
        raise ModelLoadError(f"its input example does not fit its signature: {error}") from error
    logger.info(
        "%s is loaded: %s, %.2g ms a call, batching %s",
        ref.uri,
        loaded.platform,
        loaded.cost.call * 1000,
        "on" if is_batchable else "off",
    )
    return loaded


def _backend(
    ref: ModelVersionRef,
    metadata: Model,
    contract: Contract,
    example: dict[str, Array],
    folder: Path,
    options: ServerOptions,
) -> Backend:
    """ONNX Runtime where the model is in ONNX, or has an ONNX form that is proven the same; else its own framework."""
    thread_count = options.threads or threads.available_cores()
    output_names = [tensor.name for tensor in contract.outputs]
    if "onnx" in metadata.flavors and onnx.is_available():
        file = folder / metadata.flavors["onnx"]["data"]
        return onnx.onnx_backend(file, contract, example, output_names, thread_count)
    if options.runtime != "native":
        try:
            return _onnx_form(metadata, contract, folder, thread_count)
        except ModelLoadError as error:
            if options.runtime == "onnx":
                raise
            logger.info("%s is served by its own framework: %s", ref.uri, error)
    return native_backend(load_model(str(folder)), metadata, contract, thread_count)


def _onnx_form(metadata: Model, contract: Contract, folder: Path, thread_count: int) -> Backend:
    if not onnx.is_available():
        raise ModelLoadError("ONNX Runtime is not installed.")
    shipped = folder / onnx.FOLDER
    if not (shipped / onnx.MODEL_FILE).is_file():
        if onnx_export.converter(metadata, contract) is None:
            raise ModelLoadError("it ships no ONNX form, and no converter for it is installed.")
        onnx_export.export_in_process(folder, shipped)
    return onnx.shipped_backend(shipped, contract, thread_count)


def _concurrency(declared: dict[str, Any]) -> int:
    try:
        return max(1, int(declared.get(CONCURRENCY_KEY, 1)))
    except (TypeError, ValueError) as error:
        raise ModelLoadError(f"its metadata {CONCURRENCY_KEY} is no number: {declared[CONCURRENCY_KEY]!r}.") from error
