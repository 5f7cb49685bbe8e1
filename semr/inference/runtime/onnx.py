"""ONNX Runtime: sessions of ONNX models, and the form that a model of another framework ships beside itself.

The shipped form is two files in the folder `FOLDER` of the MLflow model: `model.onnx`, and `parity.npz`, inputs with the
outputs that the framework itself gave for them. So a server can tell whether the form computes the same without loading
the framework.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from semr.inference.runtime.contract import Contract
from semr.inference.runtime.model import ModelLoadError, Predict
from semr.inference.runtime.native import Backend
from semr.inference.runtime.results import as_text
from semr.inference.tensors import Array

FOLDER = "onnx_form"
MODEL_FILE = "model.onnx"
PARITY_FILE = "parity.npz"

# Relative to the largest output, at least 1: single precision differs by some 1e-6 between kernels, errors by far more.
_TOLERANCE = 1e-4
# A call shorter than this gains nothing from several threads (measured: 28 µs with one, 46 µs with two for a small CNN).
_WORTH_THREADS_SECONDS = 5e-3
_TRIES = 3


def is_available() -> bool:
    """Whether ONNX Runtime is installed (`pip install semr[onnx]`)."""
    return find_spec("onnxruntime") is not None


def onnx_backend(
    file: Path, contract: Contract, example: Mapping[str, Array], output_names: Sequence[str], thread_count: int
) -> Backend:
    """A session of the model in `file`; it uses several threads only where a call is long enough to gain from them.

    Args:
        file: an ONNX model.
        contract: its inputs; names that the file does not have are matched by position.
        example: inputs to try it with.
        output_names: names for its outputs by position; where there are too few, the file's own.
        thread_count: threads that it may use.

    Raises:
        ModelLoadError: ONNX Runtime cannot load or run it.
    """
    predict = _session(file, contract, output_names, 1)
    if thread_count > 1 and _seconds(predict, example) > _WORTH_THREADS_SECONDS:
        predict = _session(file, contract, output_names, thread_count)
    return Backend("onnxruntime", predict)


def shipped_backend(folder: Path, contract: Contract, thread_count: int) -> Backend:
    """The form in `folder`, proven on its recorded parity.

    Raises:
        ModelLoadError: it cannot be loaded, or computes something else than the framework did.
    """
    inputs, outputs = read_parity(folder)
    backend = onnx_backend(folder / MODEL_FILE, contract, inputs, list(outputs), thread_count)
    check_parity(backend.predict(inputs), outputs)
    return backend


def write_parity(folder: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Record what the framework itself gives, in the order of the outputs."""
    arrays: dict[str, Any] = {f"in:{name}": array for name, array in inputs.items()}
    arrays.update({f"out:{name}": array for name, array in outputs.items()})
    np.savez(folder / PARITY_FILE, **arrays)


def read_parity(folder: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and outputs that `write_parity` recorded.

    Raises:
        ModelLoadError: there are none.
    """
    try:
        with np.load(folder / PARITY_FILE, allow_pickle=False) as arrays:
            inputs = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in:")}
            outputs = {key[4:]: arrays[key] for key in arrays.files if key.startswith("out:")}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"its ONNX form has no readable {PARITY_FILE}: {error}") from error
    return inputs, outputs


def check_parity(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Hold outputs of the ONNX form against the framework's own.

    Raises:
        ModelLoadError: naming the output that differs, and by how much.
    """
    for name, want in expected.items():
        have = found.get(name)
        if have is None or have.shape != want.shape or have.dtype.kind != want.dtype.kind:
            raise ModelLoadError(f"its ONNX form does not give output {name!r} as {want.dtype} {list(want.shape)}.")
        if want.dtype.kind != "f":
            if not np.array_equal(have, want):
                raise ModelLoadError(f"its ONNX form gives other values of output {name!r}.")
            continue
        difference = float(np.max(np.abs(have.astype(np.float64) - want), initial=0.0))
        if not difference <= _TOLERANCE * max(1.0, float(np.max(np.abs(want), initial=0.0))):
            raise ModelLoadError(f"its ONNX form differs by {difference:.3g} in output {name!r}.")


def _session(file: Path, contract: Contract, output_names: Sequence[str], thread_count: int) -> Predict:
    import onnxruntime as ort  # noqa: PLC0415 - an extra

    options = ort.SessionOptions()
    options.intra_op_num_threads = thread_count
    options.inter_op_num_threads = 1
    # Threads that wait for work would burn the cores that the requests need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelLoadError(f"ONNX Runtime cannot load it: {_line(error)}") from error
    wanted = [each.name for each in session.get_inputs()]
    names = [tensor.name for tensor in contract.inputs]
    if len(wanted) != len(names):
        raise ModelLoadError(f"the ONNX model takes {len(wanted)} inputs, its signature {len(names)}.")
    source = {want: want if set(wanted) == set(names) else names[index] for index, want in enumerate(wanted)}
    produced = [each.name for each in session.get_outputs()]
    labels = [output_names[index] if index < len(output_names) else name for index, name in enumerate(produced)]
    run = session.run

    if len(wanted) == 1:
        only, only_source = wanted[0], source[wanted[0]]
        return lambda arrays: dict(zip(labels, run(None, {only: _fit(arrays[only_source])}), strict=True))
    return lambda arrays: dict(
        zip(labels, run(None, {want: _fit(arrays[name]) for want, name in source.items()}), strict=True)
    )


def _fit(array: Array) -> Array:
    return as_text(array) if array.dtype == np.dtype(object) else array


def _seconds(predict: Predict, example: Mapping[str, Array]) -> float:
    times: list[float] = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        try:
            predict(example)
        except Exception as error:
            raise ModelLoadError(f"ONNX Runtime cannot run it: {_line(error)}") from error
        times.append(time.perf_counter() - started)
    return min(times)


def _line(error: Any) -> str:  # noqa: ANN401
    return " ".join(str(error).split())[:300]
