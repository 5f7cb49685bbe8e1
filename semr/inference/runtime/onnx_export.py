"""Write the ONNX form of a model that is saved in a folder: `python -m semr.inference.runtime.onnx_export MODEL FORM`.

A server runs this as a process of its own, so that the framework's memory goes with it, and a converter that crashes or
hangs does no harm. A training job has the model at hand, and ships the form with it (`ship_keras`, `ship_torch`): then no
server needs converter or framework.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import load_model
from mlflow.tracking import MlflowClient

from semr.inference.runtime.contract import EXAMPLE_ROWS, Contract, contract_of, read_contract, read_example
from semr.inference.runtime.model import ModelLoadError
from semr.inference.runtime.native import is_keras, native_backend
from semr.inference.runtime.onnx import FOLDER, MODEL_FILE, shipped_backend, write_parity
from semr.inference.runtime.results import named
from semr.inference.tensors import DATATYPES, Array

#: Loading a framework takes up to a minute on a busy machine.
TIMEOUT_SECONDS = 300.0
# Of ONNX's operators: the newest that the converters and ONNX Runtime 1.14 and later agree on.
_OPSET = 17

_CONVERTERS: dict[str, tuple[str, ...]] = {
    "keras": ("tf2onnx", "tensorflow"),
    "sklearn": ("skl2onnx",),
    "pytorch": ("onnxscript", "torch"),
}


def converter(metadata: Model, contract: Contract) -> str | None:
    """Which kind of model can be converted here, as `keras`; None when none, or its converter is not installed."""
    if contract.is_table:
        return None
    kinds = [kind for kind in ("sklearn", "pytorch") if kind in metadata.flavors]
    kind = "keras" if is_keras(metadata) else next(iter(kinds), None)
    return kind if kind and can_convert(kind) else None


def can_convert(kind: str) -> bool:
    """Whether what converts models of `kind`, as `keras`, is installed (`pip install semr[onnx]`)."""
    return all(find_spec(module) for module in (*_CONVERTERS[kind], "onnxruntime"))


def export_in_process(model_folder: Path, form_folder: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Run this module in a process of its own.

    Raises:
        ModelLoadError: the model cannot be converted; with the converter's last line.
    """
    command = [sys.executable, "-m", __name__, str(model_folder), str(form_folder)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelLoadError(f"its conversion to ONNX took longer than {timeout_seconds:g} s.") from error
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        raise ModelLoadError(f"it cannot be converted to ONNX: {lines[-1][:300] if lines else result.returncode}")


def export(model_folder: Path, form_folder: Path) -> None:
    """Convert the model in `model_folder` and record its parity on its input example.

    Raises:
        ModelLoadError: there is no converter for it.
    """
    metadata = Model.load(str(model_folder))
    contract = read_contract(metadata, model_folder)
    example = read_example(metadata, model_folder, contract)
    model = load_model(str(model_folder))
    backend = native_backend(model, metadata, contract, thread_count=1)
    outputs = backend.predict(example)
    form_folder.mkdir(parents=True, exist_ok=True)
    file = form_folder / MODEL_FILE
    kind = converter(metadata, contract)
    if kind == "keras":
        _convert_keras(model.get_raw_model(), contract, file)
    elif kind == "sklearn":
        _convert_sklearn(model.get_raw_model(), contract, example, file)
    elif kind == "pytorch":
        _convert_torch(model.get_raw_model(), contract, example, file)
    else:
        raise ModelLoadError("there is no converter for it.")
    write_parity(form_folder, example, outputs)


def ship_keras(network: Any, signature: ModelSignature, example: Array, model_id: str) -> None:  # noqa: ANN401
    """Put the ONNX form of a Keras model beside the model that MLflow has logged as `model_id`.

    Args:
        network: the model.
        signature: what it was logged with.
        example: rows of its only input, on which a server will prove the form.
        model_id: as MLflow's `log_model` returned it.

    Raises:
        ModelLoadError: it cannot be converted, or the form computes something else.
    """
    contract = contract_of(signature)
    name = contract.inputs[0].name
    outputs = named(network(example[:EXAMPLE_ROWS], training=False), [tensor.name for tensor in contract.outputs])
    _ship(
        lambda file: _convert_keras(network, contract, file),
        contract,
        {name: example[:EXAMPLE_ROWS]},
        outputs,
        model_id,
    )


def ship_torch(network: Any, signature: ModelSignature, example: Array, model_id: str) -> None:  # noqa: ANN401
    """Put the ONNX form of a PyTorch module beside the model that MLflow has logged as `model_id`; see `ship_keras`.

    By tracing: for a network without branches on its data that gives the same as `torch.export`, on which `export` goes, and
    takes a few seconds instead of most of a minute. The proof on the example holds for both.

    Raises:
        ModelLoadError: it cannot be converted, or the form computes something else.
    """
    import torch  # noqa: PLC0415

    contract = contract_of(signature)
    rows = torch.from_numpy(example[:EXAMPLE_ROWS].copy())
    with torch.inference_mode():
        outputs = named(network(rows), [tensor.name for tensor in contract.outputs])
    name = contract.inputs[0].name

    def convert(file: Path) -> None:
        with warnings.catch_warnings():
            # That tracing is the older way, and that batches of one have other shapes in it: the axis is named below.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (rows,),
                str(file),
                input_names=[name],
                dynamic_axes={name: {0: "batch"}},
                opset_version=_OPSET,
                dynamo=False,
            )

    _ship(convert, contract, {name: example[:EXAMPLE_ROWS]}, outputs, model_id)


def _ship(
    convert: Callable[[Path], None],
    contract: Contract,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    model_id: str,
) -> None:
    with tempfile.TemporaryDirectory(prefix="semr-onnx-") as name:
        form = Path(name)
        try:
            convert(form / MODEL_FILE)
        except Exception as error:
            # Converters raise what they like for layers that they do not know.
            raise ModelLoadError(f"it cannot be converted to ONNX: {' '.join(str(error).split())[:300]}") from error
        write_parity(form, inputs, outputs)
        shipped_backend(form, contract, thread_count=1)
        MlflowClient().log_model_artifacts(model_id, name, FOLDER)


def _convert_keras(network: Any, contract: Contract, file: Path) -> None:  # noqa: ANN401
    """`keras.Model.export` converts the graph of training, in which augmentation layers act; this takes that of inference."""
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415
    import tf2onnx  # noqa: PLC0415 - an extra

    if keras.config.backend() != "tensorflow":
        raise ModelLoadError("only Keras models on TensorFlow can be converted.")
    specs = [
        tf.TensorSpec(
            [None if size < 0 else size for size in tensor.shape], DATATYPES[tensor.datatype], name=tensor.name
        )
        for tensor in contract.inputs
    ]
    if len(specs) == 1:
        graph = tf.function(lambda batch: network(batch, training=False), input_signature=specs)
    else:
        names = [tensor.name for tensor in contract.inputs]
        graph = tf.function(
            lambda *batch: network(dict(zip(names, batch, strict=True)), training=False), input_signature=specs
        )
    tf2onnx.convert.from_function(graph, specs, opset=_OPSET, output_path=str(file))


def _convert_sklearn(estimator: Any, contract: Contract, example: Mapping[str, Array], file: Path) -> None:  # noqa: ANN401
    from skl2onnx import to_onnx  # noqa: PLC0415 - an extra

    # Without this, probabilities come as a list of dictionaries.
    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None
    array = next(iter(example.values()))
    form = to_onnx(estimator, array[:1], options=options, target_opset=_OPSET)
    # A classifier's form gives labels and probabilities; the model gives one of them.
    function = "predict"
    if contract.outputs and len(contract.outputs[0].shape) == 2 and hasattr(estimator, "predict_proba"):
        function = "predict_proba"
    if len(form.graph.output) > 1:
        del form.graph.output[0 if function == "predict_proba" else 1]
    file.write_bytes(form.SerializeToString())


def _convert_torch(network: Any, contract: Contract, example: Mapping[str, Array], file: Path) -> None:  # noqa: ANN401
    import torch  # noqa: PLC0415

    names = [tensor.name for tensor in contract.inputs]
    batch = torch.export.Dim("batch")
    free = {tensor.name: {0: batch} if tensor.shape[0] == -1 else None for tensor in contract.inputs}
    arrays = tuple(torch.from_numpy(example[name].copy()) for name in names)
    torch.onnx.export(
        network,
        arrays,
        str(file),
        input_names=names,
        dynamic_shapes=tuple(free.values()),
        dynamo=True,
        external_data=False,
    )


def main(arguments: list[str]) -> int:
    """Command line; returns the exit code, the reason goes to standard error."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        export(Path(arguments[0]), Path(arguments[1]))
    except Exception as error:  # noqa: BLE001 - the reason is the result of this process
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
