"""The HTTP application over a real (small) model function: paths, statuses, sentences, numbers, version switches."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient

from semr.inference import holder as holder_module
from semr.inference.app import ServerState, create_app
from semr.inference.holder import ModelHolder
from semr.inference.metrics import PrometheusSink, ServerMetrics
from semr.inference.protocol import Array, TensorMetadata
from semr.inference.runtime import LoadedModel, ModelLoadError
from semr.registry import ModelVersionRef


def doubling_model(version: str = "3") -> LoadedModel:
    def double(inputs: dict[str, Array]) -> dict[str, Array]:
        if np.isnan(inputs["x"]).any():
            raise RuntimeError("secret detail of the model")
        return {"y": inputs["x"] * 2, "version": np.full(len(inputs["x"]), int(version))}

    return LoadedModel(
        ref=ModelVersionRef("doubler", version, f"models:/doubler/{version}", "run", {}),
        platform="test",
        inputs=(TensorMetadata(name="x", datatype="FP32", shape=[-1, 2]),),
        outputs=(
            TensorMetadata(name="y", datatype="FP32", shape=[-1, 2]),
            TensorMetadata(name="version", datatype="INT64", shape=[-1]),
        ),
        _predict=double,
    )


@pytest.fixture
def state() -> ServerState:
    sink = PrometheusSink()
    return ServerState(ModelHolder("doubler", ServerMetrics([sink]), current=doubling_model()), sink)


@pytest.fixture
def client(state: ServerState) -> Iterator[TestClient]:
    with TestClient(create_app(lambda: state)) as client:
        yield client


def body(data: object = (1.0, 2.0), shape: tuple[int, ...] = (1, 2), datatype: str = "FP32", name: str = "x") -> dict:
    return {"inputs": [{"name": name, "shape": list(shape), "datatype": datatype, "data": data}]}


def test_health_and_metadata(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["name"] == "semr"
    metadata = client.get("/v2/models/doubler").json()
    assert metadata["versions"] == ["3"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert client.get("/v2/models/doubler/versions/3/ready").json()["ready"] is True


def test_infer_answers_with_id_version_and_all_outputs(client: TestClient) -> None:
    answer = client.post("/v2/models/doubler/infer", json={"id": "abc", **body()}).json()
    assert answer["id"] == "abc"
    assert (answer["model_name"], answer["model_version"]) == ("doubler", "3")
    assert answer["outputs"][0] == {"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [2.0, 4.0]}
    assert [output["name"] for output in answer["outputs"]] == ["y", "version"]


def test_only_the_requested_outputs_come_back(client: TestClient) -> None:
    answer = client.post("/v2/models/doubler/infer", json={**body(), "outputs": [{"name": "version"}]}).json()
    assert [output["name"] for output in answer["outputs"]] == ["version"]


@pytest.mark.parametrize(
    ("path", "content", "status", "words"),
    [
        ("other/infer", body(), 404, "no model 'other'"),
        ("doubler/versions/9/infer", body(), 404, "version 3, not 9"),
        ("doubler/infer", body(name="z"), 400, "takes the inputs"),
        ("doubler/infer", body(datatype="FP64"), 400, "must have datatype FP32"),
        ("doubler/infer", body(data=[1.0], shape=(1, 1)), 400, "must have shape"),
        ("doubler/infer", body(data=[], shape=(0, 2)), 400, "empty"),
        ("doubler/infer", body(data=[1.0, 2.0, 3.0]), 400, "needs 2"),
        ("doubler/infer", {"inputs": []}, 400, "inputs"),
        ("doubler/infer", {}, 400, "inputs"),
        ("doubler/infer", {**body(), "outputs": [{"name": "nope"}]}, 400, "no output 'nope'"),
        ("doubler/infer", {**body(), "surprise": 1}, 400, "surprise"),
    ],
)
def test_bad_requests_get_a_sentence(client: TestClient, path: str, content: dict, status: int, words: str) -> None:
    answer = client.post(f"/v2/models/{path}", json=content)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_body_that_is_not_json_is_a_400(client: TestClient) -> None:
    answer = client.post("/v2/models/doubler/infer", content=b"{not json", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "error" in answer.json()


def test_a_failing_model_tells_no_detail(client: TestClient) -> None:
    content = '{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [NaN, 1.0]}]}'
    answer = client.post("/v2/models/doubler/infer", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 500)
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_numbers_are_counted_by_status(client: TestClient) -> None:
    client.post("/v2/models/doubler/infer", json=body())
    client.post("/v2/models/doubler/infer", json=body(datatype="FP64"))
    text = client.get("/metrics").text
    assert 'semr_inference_requests_total{model="doubler",status="200",version="3"} 1.0' in text
    assert 'semr_inference_requests_total{model="doubler",status="400",version="3"} 1.0' in text
    assert 'semr_inference_latency_seconds_count{model="doubler",version="3"} 2.0' in text


def test_without_a_model_it_is_live_but_not_ready_and_says_why(client: TestClient, state: ServerState) -> None:
    state.holder.current = None
    state.holder.problems = {"4": "models:/doubler/4 cannot be loaded"}
    assert client.get("/v2/health/live").status_code == 200
    answer = client.get("/v2/health/ready")
    assert answer.status_code == 503
    assert "cannot be loaded" in answer.json()["error"]
    assert client.post("/v2/models/doubler/infer", json=body()).status_code == 503


def test_a_version_that_cannot_be_loaded_keeps_the_old_one(
    client: TestClient, state: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, version: str) -> LoadedModel:
        raise ModelLoadError(f"models:/{name}/{version} cannot be loaded: broken archive")

    monkeypatch.setattr(holder_module, "load", fail)
    assert state.holder.switch("4") is False
    assert client.post("/v2/models/doubler/infer", json=body()).json()["model_version"] == "3"
    answer = client.get("/v2/models/doubler/versions/4/ready")
    assert answer.status_code == 503
    assert "broken archive" in answer.json()["error"]
    assert 'semr_model_load_failures_total{model="doubler",version="4"} 1.0' in client.get("/metrics").text


def test_switching_under_load_never_mixes_versions(
    client: TestClient, state: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder_module, "load", lambda _, version: doubling_model(version))
    done = threading.Event()

    def switch() -> None:
        for number in range(200):
            state.holder.switch(str(number))
        done.set()

    thread = threading.Thread(target=switch)
    thread.start()
    while not done.is_set():
        answer = client.post("/v2/models/doubler/infer", json=body()).json()
        assert answer["outputs"][1]["data"] == [int(answer["model_version"])]
    thread.join()
    text = client.get("/metrics").text
    assert 'semr_model_info{model="doubler",version="199"} 1.0' in text
    assert 'semr_model_info{model="doubler",version="198"} 0.0' in text
