"""The Open Inference Protocol, path by path: what its text promises to good requests, and a named refusal of bad ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from semr.inference.app import ServerState, create_app
from semr.inference.codec import HEADER_LENGTH
from semr.inference.holder import ModelHolder
from semr.inference.metrics import PrometheusSink, ServerMetrics
from semr.inference.options import load_options
from semr.inference.protocol import TensorMetadata
from semr.inference.runtime import LoadedModel
from semr.inference.tensors import Array
from semr.registry import ModelVersionRef


def two_inputs(inputs: dict[str, Array]) -> dict[str, Array]:
    names = np.empty(len(inputs["a"]), object)
    names[:] = [name.decode().upper().encode() for name in inputs["name"]]
    return {"sum": inputs["a"].sum(axis=1), "name": names}


LOADED = LoadedModel(
    ref=ModelVersionRef("pair", "7", "models:/pair/7", "run", {}),
    platform="test",
    inputs=(
        TensorMetadata(name="a", datatype="FP32", shape=[-1, 3]),
        TensorMetadata(name="name", datatype="BYTES", shape=[-1]),
    ),
    outputs=(
        TensorMetadata(name="sum", datatype="FP32", shape=[-1]),
        TensorMetadata(name="name", datatype="BYTES", shape=[-1]),
    ),
    _predict=two_inputs,
)
OPTIONS = load_options(body_bytes=20_000, request_rows=100)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    sink = PrometheusSink()
    state = ServerState(ModelHolder("pair", ServerMetrics([sink]), current=LOADED), sink, OPTIONS)
    with TestClient(create_app(lambda: state), raise_server_exceptions=False) as client:
        yield client


def a(data: Any = (1, 2, 3), shape: Any = (1, 3), datatype: Any = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": "a", "shape": shape, "datatype": datatype, "data": data, **more}


def name(data: Any = ("x",), shape: Any = (1,), datatype: Any = "BYTES", **more: Any) -> dict[str, Any]:
    return {"name": "name", "shape": shape, "datatype": datatype, "data": data, **more}


def body(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs) or [a(), name()], **more}


PATHS = ("/v2/models/pair/infer", "/v2/models/pair/versions/7/infer")


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/v2", {"name", "version", "extensions"}),
        ("/v2/health/live", {"live"}),
        ("/v2/health/ready", {"ready"}),
        ("/v2/models", {"models"}),
        ("/v2/models/pair", {"name", "versions", "platform", "inputs", "outputs"}),
        ("/v2/models/pair/versions/7", {"name", "versions", "platform", "inputs", "outputs"}),
        ("/v2/models/pair/ready", {"name", "version", "ready"}),
        ("/v2/models/pair/versions/7/ready", {"name", "version", "ready"}),
    ],
)
def test_every_path_to_ask_answers_with_its_object(client: TestClient, path: str, keys: set[str]) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == keys


@pytest.mark.parametrize("path", PATHS)
def test_infer_row_major_flat_and_nested(client: TestClient, path: str) -> None:
    for data in ([1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]):
        content = body(a(data, [2, 3]), name(["é", "b"], [2]), id="4-2", parameters={"anything": 1})
        answer = client.post(path, json=content).json()
        assert answer["id"] == "4-2"
        assert (answer["model_name"], answer["model_version"]) == ("pair", "7")
        assert answer["outputs"] == [
            {"name": "sum", "shape": [2], "datatype": "FP32", "data": [6.0, 15.0]},
            {"name": "name", "shape": [2], "datatype": "BYTES", "data": ["É", "B"]},
        ]


def test_the_order_of_inputs_is_free_and_outputs_come_as_asked(client: TestClient) -> None:
    content = body(name(), a(), outputs=[{"name": "name"}, {"name": "sum"}], model_name="pair")
    answer = client.post(PATHS[0], json=content).json()
    assert [output["name"] for output in answer["outputs"]] == ["name", "sum"]
    assert "id" not in answer


def test_raw_tensors_in_and_out(client: TestClient) -> None:
    inputs = [
        {"name": "a", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}},
        {"name": "name", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}},
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    raw = np.float32([1, 2, 3.5]).tobytes() + b"\x02\x00\x00\x00ab"
    answer = client.post(PATHS[0], content=head + raw, headers={HEADER_LENGTH: str(len(head))})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers[HEADER_LENGTH])
    sizes = [output["parameters"]["binary_data_size"] for output in json.loads(answer.content[:length])["outputs"]]
    assert sizes == [4, 6]
    assert answer.content[length:] == np.float32([6.5]).tobytes() + b"\x02\x00\x00\x00AB"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (body(a(datatype="FP64"), name()), "must have datatype FP32, not FP64"),
        (body(a(datatype="fp32"), name()), "known are BOOL"),
        (body(a([1, 2], [1, 2]), name()), "must have shape"),
        (body(a([1, 2, 3], [3]), name()), "must have shape"),
        (body(a([1, 2, 3, 4]), name()), "has 4 elements"),
        (body(a([], [0, 3]), name([], [0])), "empty"),
        (body(a([1, 2, 3, 4, 5, 6], [2, 3]), name()), "same batch size"),
        (body(a(), name([1])), "not BYTES"),
        (body(a(["1", "2", "3"]), name()), "not FP32"),
        (body(a([1e40, 2, 3]), name()), "outside of the range"),
        (body(a()), "takes the inputs"),
        (body(a(), name(), {**a(), "name": "b"}), "takes the inputs"),
        (body(a(), name(), a()), "given twice"),
        (body(a(), name(), outputs=[{"name": "nope"}]), "no output 'nope'"),
        (body(a(surprise=1), name()), "surprise"),
        (body(a(), name(), parameters={"nested": {}}), "parameters"),
        ({"inputs": []}, "inputs"),
        ({}, "inputs"),
        ([], "cannot be read"),
        ("text", "cannot be read"),
    ],
)
def test_infer_refuses_by_name(client: TestClient, path: str, content: Any, words: str) -> None:
    answer = client.post(path, json=content)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"\x00\xff", {}, 400),
        (b'{"inputs": []}', {HEADER_LENGTH: "99"}, 400),
        (b'{"inputs": []}', {HEADER_LENGTH: "x"}, 400),
        (b"x" * 20_001, {}, 413),
        (b"\x1f\x8b", {"Content-Encoding": "gzip"}, 415),
    ],
)
def test_bodies_that_are_no_request_get_their_status(
    client: TestClient, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = client.post(path, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_a_body_in_pieces_is_counted_too(client: TestClient) -> None:
    assert client.post(PATHS[0], content=iter([b"x" * 15_000, b"x" * 15_000])).status_code == 413
    whole = json.dumps(body()).encode()
    assert client.post(PATHS[0], content=iter([whole[:20], whole[20:]])).status_code == 200


def test_too_many_rows_are_413(client: TestClient) -> None:
    answer = client.post(PATHS[0], json=body(a([0] * 303, [101, 3]), name(["x"] * 101, [101])))
    assert answer.status_code == 413
    assert "at most 100" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/v2/models/pair/versions/8", 404),
        ("GET", "/v2/models/pair/versions/8/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/pair/versions/8/infer", 404),
        ("POST", "/v2/models/pair/versions//infer", 404),
        ("POST", "/v2/models//infer", 404),
        ("POST", "/v3/models/pair/infer", 404),
        ("POST", "/infer", 404),
        ("GET", "/v2/models/pair/infer", 405),
        ("DELETE", "/v2/models/pair", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/", 404),
    ],
)
def test_other_paths_and_methods_have_a_sentence_too(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert status != 405 or answer.headers["allow"]


def test_repository_index_with_and_without_a_body(client: TestClient) -> None:
    entry = {"name": "pair", "version": "7", "state": "READY", "reason": ""}
    assert client.post("/v2/repository/index").json() == [entry]
    assert client.post("/v2/repository/index", json={"ready": True}).json() == [entry]
    assert client.post("/v2/repository/index", json={"ready": "yes"}).status_code == 400


def test_request_ids_come_back(client: TestClient) -> None:
    for method, path in (("POST", PATHS[0]), ("GET", "/v2"), ("GET", "/nowhere")):
        assert client.request(method, path, headers={"X-Request-ID": "trace-1"}).headers["x-request-id"] == "trace-1"
        made = {client.request(method, path).headers["x-request-id"] for _ in range(3)}
        assert len(made) == 3
        unfit = client.request(method, path, headers={"X-Request-ID": "x" * 200}).headers["x-request-id"]
        assert len(unfit) < 100


def test_the_description_has_an_example_that_works(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        operation = described["paths"][path]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        filled = path
        for parameter in operation["parameters"]:
            filled = filled.replace("{" + parameter["name"] + "}", parameter["example"])
        assert client.post(filled, json=example).status_code == 200
    assert client.get("/docs").status_code == 200


def test_below_a_prefix_all_paths_work_the_same() -> None:
    """As Ray Serve mounts it: the prefix is in the path and in the root path."""
    sink = PrometheusSink()
    state = ServerState(ModelHolder("pair", ServerMetrics([sink]), current=LOADED), sink, OPTIONS)
    with TestClient(create_app(lambda: state), root_path="/prefix") as client:
        assert client.post("/prefix" + PATHS[0], json=body()).status_code == 200
        assert client.get("/prefix/v2/models/pair").status_code == 200
