"""Bodies of requests and answers: JSON and raw tensors, what is taken and what is refused, in which words."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from semr.errors import InvalidInputError
from semr.inference.codec import decode_request, encode_request, encode_response, parse_request
from semr.inference.tensors import DATATYPES, InvalidTensorError, from_bytes, from_json, is_finite, to_bytes, to_json


def example(datatype: str) -> np.ndarray:
    numbers = np.array([[0, 1, 1], [1, 0, 1]])
    if datatype != "BYTES":
        return numbers.astype(DATATYPES[datatype])
    texts = np.empty(numbers.shape, object)
    texts[:] = [[f"{number} ü".encode() for number in row] for row in numbers.tolist()]
    return texts


def binary(inputs: list[dict[str, Any]], raw: bytes, **more: Any) -> tuple[bytes, str]:
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + raw, str(len(head))


def tensor(name: str, shape: list[int], datatype: str, size: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_raw_tensors_survive_the_round_trip(datatype: str) -> None:
    array = example(datatype)
    raw = to_bytes(array)
    # One more space in the JSON shifts the bytes behind it, so that some case is not aligned.
    for name in ("x", "xx", "xxx", "xxxx"):
        body, length = binary([tensor(name, [2, 3], datatype, len(raw))], raw)
        back = decode_request(body, length).inputs[name]
        assert back.dtype == array.dtype
        assert back.flags.aligned
        np.testing.assert_array_equal(back, array)


def test_raw_tensors_follow_the_extension_byte_by_byte() -> None:
    assert to_bytes(np.array([1, 258], np.uint16)) == b"\x01\x00\x02\x01"
    assert to_bytes(np.array([True, False])) == b"\x01\x00"
    assert to_bytes(np.array(["ab", ""], object)) == b"\x02\x00\x00\x00ab\x00\x00\x00\x00"
    np.testing.assert_array_equal(
        from_bytes("x", "FP32", [2], memoryview(struct.pack("<2f", 1.5, -2))), np.float32([1.5, -2])
    )


def test_several_inputs_take_their_bytes_in_order_beside_json() -> None:
    raw = np.arange(4, dtype=np.int32).tobytes() + b"\x01\x00"
    inputs = [
        tensor("a", [4], "INT32", 16),
        {"name": "b", "shape": [1], "datatype": "FP64", "data": [0.5]},
        tensor("c", [2], "BOOL", 2),
    ]
    body, length = binary(inputs, raw)
    decoded = decode_request(body, length)
    assert decoded.inputs["a"].tolist() == [0, 1, 2, 3]
    assert decoded.inputs["b"].tolist() == [0.5]
    assert decoded.inputs["c"].tolist() == [True, False]
    assert not decoded.is_json


@pytest.mark.parametrize(
    ("inputs", "raw", "words"),
    [
        ([tensor("x", [2], "FP32", 8)], b"1234567", "announces 8 bytes"),
        ([tensor("x", [2], "FP32", 7)], b"1234567", "needs 8"),
        ([tensor("x", [2], "FP32", 8)], b"123456789", "1 bytes more"),
        ([tensor("x", [2], "FP32", -8)], b"", "no number of bytes"),
        ([tensor("x", [2], "FP32", "8")], b"12345678", "no number of bytes"),
        ([tensor("x", [2], "FP32", True)], b"12345678", "no number of bytes"),
        ([{**tensor("x", [2], "FP32", 8), "data": [1, 2]}], b"12345678", "both data and"),
        ([tensor("x", [2], "BOOL", 2)], b"\x01\x02", "not BOOL"),
        ([tensor("x", [1], "BYTES", 6)], b"\x05\x00\x00\x00ab", "middle of an element"),
        ([tensor("x", [1], "BYTES", 3)], b"\x05\x00\x00", "middle of an element"),
        ([tensor("x", [2], "BYTES", 6)], b"\x02\x00\x00\x00ab", "1 elements"),
        ([tensor("x", [0, 2**62, 2**62], "FP32", 0)], b"", "too large"),
        ([tensor("x", [1] * 33, "FP32", 4)], b"1234", "33 axes"),
    ],
)
def test_raw_tensors_that_do_not_add_up_are_refused(inputs: list[dict[str, Any]], raw: bytes, words: str) -> None:
    body, length = binary(inputs, raw)
    with pytest.raises(InvalidInputError, match=words):
        decode_request(body, length)


@pytest.mark.parametrize("length", ["", "-1", "1e3", "ten", "99999", "9" * 30, "²"])
def test_a_header_length_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(InvalidInputError, match="no length within the body"):
        decode_request(b'{"inputs": []}', length)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "not JSON"),
        (b"[]", "cannot be read"),
        (b"null", "cannot be read"),
        (b'{"inputs": [1]}', r"inputs\.0"),
        (b'{"inputs": [{"name": "x", "shape": [1.5], "datatype": "FP32", "data": [1]}]}', r"shape\.0"),
        (b'{"inputs": [{"name": "x", "shape": ["1"], "datatype": "FP32", "data": [1]}]}', r"shape\.0"),
        (b'{"inputs": [{"name": "x", "shape": [true], "datatype": "FP32", "data": [1]}]}', r"shape\.0"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}', "no data"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": 1}]}', "data"),
        (b'{"id": 5, "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}', "id"),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]},'
            b' {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}',
            "given twice",
        ),
    ],
)
def test_bodies_that_are_no_request_are_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        decode_request(body)


@pytest.mark.parametrize("has_booleans", [True, False])
@pytest.mark.parametrize(
    ("datatype", "data", "words"),
    [
        ("FP32", [1.0, None], "not FP32"),
        ("FP32", ["1", 2], "not FP32"),
        ("FP32", [1e300, 0], "outside of the range"),
        ("FP16", [70000.0, 0], "outside of the range"),
        ("INT8", [128, 0], "outside of the range"),
        ("UINT64", [-1, 0], "outside of the range"),
        ("INT32", [1.5, 0], "not INT32"),
        ("BYTES", [1, 2], "not BYTES"),
        ("FP32", [1.0], "needs 2"),
    ],
)
def test_both_ways_of_reading_json_refuse_the_same(
    datatype: str, data: list[Any], words: str, has_booleans: bool
) -> None:
    with pytest.raises(InvalidTensorError, match=words):
        from_json("x", datatype, [2], data, has_booleans=has_booleans)


@pytest.mark.parametrize("name", ["x", "full", "u" * 100, "l" * 100])
@pytest.mark.parametrize("literal", ["true", "false"])
def test_booleans_are_no_numbers_however_they_come(name: str, literal: str) -> None:
    tensor = f'{{"name": "{name}", "shape": [2], "datatype": "FP32", "data": [1.5, {literal}]}}'
    body = f'{{"inputs": [{tensor}]}}'.encode()
    with pytest.raises(InvalidTensorError, match="not FP32"):
        decode_request(body)


@pytest.mark.parametrize(
    ("data", "shape"), [([[1, 2], [3, 4]], [4, 1]), ([[1, 2], [3, 4]], [1, 4]), ([[[1], [2]], [[3], [4]]], [2, 1, 2])]
)
def test_nesting_that_contradicts_the_shape_is_refused(data: list[Any], shape: list[int]) -> None:
    with pytest.raises(InvalidTensorError, match="nested as"):
        from_json("x", "FP32", shape, data)


def test_nesting_may_stop_before_the_last_axes() -> None:
    assert from_json("x", "FP32", [2, 2, 1], [[1, 2], [3, 4]]).shape == (2, 2, 1)


def test_answers_are_raw_where_asked_for() -> None:
    request = parse_request(
        {
            "id": "7",
            "parameters": {"binary_data_output": True},
            "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}],
            "outputs": [{"name": "b", "parameters": {"binary_data": False}}, {"name": "a"}],
        }
    )
    outputs = {"b": np.array([1.5, 2], np.float16), "a": np.array([[1, 2]], np.int64)}
    encoded = encode_response("m", "3", request, outputs, {"prediction_id": "p"})
    assert encoded.header_length is not None
    head = json.loads(encoded.body[: encoded.header_length])
    assert head == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "parameters": {"prediction_id": "p"},
        "outputs": [
            {"name": "b", "shape": [2], "datatype": "FP16", "data": [1.5, 2.0]},
            {"name": "a", "shape": [1, 2], "datatype": "INT64", "parameters": {"binary_data_size": 16}},
        ],
    }
    assert encoded.body[encoded.header_length :] == struct.pack("<2q", 1, 2)


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_a_request_as_our_client_encodes_it_is_read_back(datatype: str) -> None:
    inputs = {"x": example(datatype), "y": np.zeros((0, 3), np.float32)}
    body, json_length = encode_request(inputs, "mine")
    decoded = decode_request(body, str(json_length))
    assert decoded.request.id == "mine" and not decoded.is_json
    for name, array in inputs.items():
        assert decoded.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(decoded.inputs[name], array)


def test_bytes_that_are_no_text_need_raw_output() -> None:
    with pytest.raises(InvalidTensorError, match="binary"):
        to_json(np.array([b"\xff"], object))
    assert to_bytes(np.array([b"\xff"], object)) == b"\x01\x00\x00\x00\xff"


def test_finite_is_told_from_what_only_adds_up_to_infinity() -> None:
    assert is_finite(np.full(10, 3e38, np.float32))
    assert not is_finite(np.array([np.inf, -np.inf]))
    assert not is_finite(np.array([np.nan, 1]))
    assert is_finite(np.array([1, 2]))
