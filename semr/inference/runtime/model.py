"""A model version in memory with its contract of tensors, which requests are held against before the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from semr.errors import InvalidInputError, SemrError
from semr.inference.protocol import TensorMetadata
from semr.inference.tensors import DATATYPES, Array, datatype_name, is_finite
from semr.registry import ModelVersionRef

#: Outputs by name for inputs by name, which it must not change.
Predict = Callable[[Mapping[str, Array]], dict[str, Array]]


class ModelLoadError(SemrError):
    """A model version cannot be loaded or does not work on its own input example."""


class InvalidRequestError(InvalidInputError):
    """The inputs of a request do not fit the model's signature."""


class ModelOutputError(SemrError):
    """A model answered with something that cannot be sent."""


@dataclass(frozen=True)
class Cost:
    """Measured time of a call: `call` seconds for one row, and `row` seconds for each further one."""

    call: float = 0.0
    row: float = 0.0

    def seconds(self, rows: int) -> float:
        """Expected time of a call with `rows` rows."""
        return self.call + self.row * max(rows - 1, 0)


@dataclass(frozen=True)
class LoadedModel:
    """A model version in memory, warmed up, with its contract of tensors.

    Attributes:
        ref: which version it is.
        platform: the framework that computes, as `keras` or `onnxruntime`.
        inputs: tensors that `predict` takes, the first axis being the batch where it is -1.
        outputs: tensors that it returns.
        optional: names of inputs that may be missing.
        is_batchable: whether rows of several requests may go into one call: each row's answer does not depend on the others.
        takes_non_finite: whether NaN and infinity are input like any other, as for models with missing values.
        is_steady: whether a call's time depends on the number of its rows alone, as that of a graph of fixed shapes does and
            that of Python code need not; only then may it run in the event loop's thread.
        concurrency: calls that may run at once.
        cost: what a call takes.
        tolerance: of a forecaster, the error of each value up to which a forecast counts as right; None for other models.
        extensions: modules that add paths of their own to the server.
    """

    ref: ModelVersionRef
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    _predict: Predict = field(repr=False)
    optional: frozenset[str] = frozenset()
    is_batchable: bool = False
    takes_non_finite: bool = False
    is_steady: bool = False
    concurrency: int = 1
    cost: Cost = Cost()
    tolerance: tuple[float, ...] | None = None
    extensions: tuple[str, ...] = ()

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name.

        Raises:
            InvalidRequestError: names, datatypes or shapes do not fit, the batch sizes differ, or a value is not finite.
            ModelOutputError: the model answered with NaN or infinity.
        """
        self.check(inputs)
        return self.run(inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`predict` for inputs that were checked."""
        outputs = self._predict(inputs)
        if not self.takes_non_finite:
            for name, array in outputs.items():
                if not is_finite(array):
                    raise ModelOutputError(
                        f"Model {self.ref.name!r} version {self.ref.version} answered with NaN or infinity in output {name!r}."
                    )
        return outputs

    def check(self, inputs: Mapping[str, Array], *, are_finite: bool = False) -> int:
        """Hold inputs against the contract; returns the number of rows, 1 for a model without a batch axis.

        Args:
            inputs: arrays by name.
            are_finite: whether it is known that no value is NaN or infinite.

        Raises:
            InvalidRequestError: see `predict`.
        """
        rows: int | None = None
        for tensor in self.inputs:
            array = inputs.get(tensor.name)
            if array is None:
                if tensor.name in self.optional:
                    continue
                raise self._wrong_names(inputs)
            self._check_tensor(tensor, array, are_finite)
            if tensor.shape and tensor.shape[0] == -1:
                if rows is not None and array.shape[0] != rows:
                    raise InvalidRequestError(
                        "All inputs of a request must have the same batch size, their first axis."
                    )
                rows = array.shape[0]
        if len(inputs) > len(self.inputs) or not all(any(name == each.name for each in self.inputs) for name in inputs):
            raise self._wrong_names(inputs)
        if not inputs:
            raise InvalidRequestError(f"Model {self.ref.name!r} needs at least one of its inputs.")
        return 1 if rows is None else rows

    def _check_tensor(self, tensor: TensorMetadata, array: Array, are_finite: bool) -> None:
        if array.dtype != DATATYPES[tensor.datatype]:
            raise InvalidRequestError(
                f"Input {tensor.name!r} must have datatype {tensor.datatype}, not {datatype_name(array.dtype)}."
            )
        shape = array.shape
        fits = len(shape) == len(tensor.shape) and all(
            want in (-1, have) for want, have in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            raise InvalidRequestError(
                f"Input {tensor.name!r} must have shape {tensor.shape} (-1: any size), not {list(shape)}."
            )
        if array.size == 0:
            raise InvalidRequestError(f"Input {tensor.name!r} is empty: send at least one example.")
        if not are_finite and not self.takes_non_finite and not is_finite(array):
            raise InvalidRequestError(
                f"Input {tensor.name!r} has NaN or infinity, which model {self.ref.name!r} does not declare to take."
            )

    def _wrong_names(self, inputs: Mapping[str, Array]) -> InvalidRequestError:
        wanted = [tensor.name for tensor in self.inputs]
        return InvalidRequestError(
            f"Model {self.ref.name!r} takes the inputs {wanted}, but the request has {list(inputs)}."
        )
