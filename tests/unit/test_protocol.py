"""Tensors of the Open Inference Protocol: what is accepted, what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from semr.inference.protocol import DATATYPES, InferInput, InferOutput, InvalidTensorError, datatype_name
from semr.inference.tensors import to_json


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_survives_the_round_trip(datatype: str) -> None:
    numbers = np.array([[0, 1, 1], [1, 0, 1]])
    if datatype == "BYTES":
        array = np.array([[f"{number} ü".encode() for number in row] for row in numbers], object)
    else:
        array = numbers.astype(DATATYPES[datatype])
    data = to_json(array)
    text = orjson.dumps(
        {"name": "x", "shape": array.shape, "datatype": datatype, "data": data}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    back = InferInput.model_validate_json(text).to_array()
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_flat_and_nested_data_are_the_same_tensor() -> None:
    flat = InferInput(name="x", shape=[2, 2], datatype="FP32", data=[1, 2.5, 3, 4])
    nested = InferInput(name="x", shape=[2, 2], datatype="FP32", data=[[1, 2.5], [3, 4]])
    np.testing.assert_array_equal(flat.to_array(), nested.to_array())


@pytest.mark.parametrize(
    ("shape", "datatype", "data", "words"),
    [
        ([2], "FP128", [1, 2], "FP128"),
        ([-1], "FP32", [1], "negative size"),
        ([3], "FP32", [1, 2], "needs 3"),
        ([2, 2], "FP32", [[1, 2], [3]], "even nesting"),
        ([1], "FP32", ["1"], "not FP32"),
        ([1], "INT8", [1.5], "not INT8"),
        ([1], "INT8", [300], "outside of the range of INT8"),
        ([1], "UINT8", [-1], "outside of the range of UINT8"),
        ([1], "INT64", [True], "not INT64"),
        ([1], "BOOL", [1], "not BOOL"),
        ([1], "FP32", [None], "not FP32"),
        ([1], "INT64", [2**70], "INT64"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(shape: list[int], datatype: str, data: list[Any], words: str) -> None:
    with pytest.raises(InvalidTensorError, match=words) as caught:
        InferInput(name="pixels", shape=shape, datatype=datatype, data=data).to_array()
    assert "'pixels'" in str(caught.value)


def test_an_empty_tensor_is_a_tensor() -> None:
    assert InferInput(name="x", shape=[0, 3], datatype="FP32", data=[]).to_array().shape == (0, 3)


def test_output_is_flat_and_comes_back_in_shape() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    output = InferOutput(name="y", shape=[2, 3], datatype="FP32", data=[0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(output.to_array(), array)


def test_a_dtype_that_the_protocol_lacks_is_refused() -> None:
    with pytest.raises(InvalidTensorError, match="complex128"):
        datatype_name(np.dtype(np.complex128))
