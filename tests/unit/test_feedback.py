"""Prediction ids and feedback, and what the observer counts, through the HTTP application over a real model function."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from semr.errors import DependencyUnavailableError
from semr.inference import holder as holder_module
from semr.inference.app import ServerState, create_app
from semr.inference.holder import ModelHolder
from semr.inference.metrics import PrometheusSink, ServerMetrics
from semr.inference.protocol import Array, TensorMetadata
from semr.inference.runtime import LoadedModel
from semr.monitoring import prediction_id
from semr.monitoring.baseline import Baseline
from semr.monitoring.buffer import BoundedBuffer
from semr.monitoring.classification import Classification, Forecast, classify, understand
from semr.monitoring.drift import ReferenceWindow
from semr.monitoring.observer import Observer
from semr.monitoring.prediction_id import PredictionIdError
from semr.monitoring.rate import RowLimit
from semr.registry import ModelVersionRef


def classes(values: np.ndarray) -> Classification:
    return Classification(values, None)


def sign_model(version: str = "3") -> LoadedModel:
    """Class 1 when the first column is positive."""

    def predict(inputs: dict[str, Array]) -> dict[str, Array]:
        positive = np.where(inputs["x"][:, 0] > 0, 0.9, 0.2)
        return {"probabilities": np.stack([1 - positive, positive], axis=1).astype(np.float32)}

    return LoadedModel(
        ref=ModelVersionRef("sign", version, f"models:/sign/{version}", "run", {}),
        platform="test",
        inputs=(TensorMetadata(name="x", datatype="FP32", shape=[-1, 2]),),
        outputs=(TensorMetadata(name="probabilities", datatype="FP32", shape=[-1, 2]),),
        _predict=predict,
    )


def baseline(ref: ModelVersionRef) -> Baseline:
    if ref.version == "9":
        raise DependencyUnavailableError("MLflow", "http://127.0.0.1:1", "refused")
    rows = np.random.default_rng(0).normal(size=(500, 2))
    return Baseline(ReferenceWindow.from_inputs(rows, "columns"), trained=1000.0, accuracy=0.97)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    sink = PrometheusSink()
    metrics = ServerMetrics([sink])
    observer = Observer("sign", metrics.sinks, baseline_of=baseline)
    holder = ModelHolder("sign", metrics, watched_by=observer)
    monkeypatch.setattr(holder_module, "load", lambda _, version: sign_model(version))
    assert holder.switch("3")
    with TestClient(create_app(lambda: ServerState(holder, sink))) as client:
        yield client
    observer.close()


def ask(client: TestClient, rows: np.ndarray) -> str:
    tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    answer = client.post("/v2/models/sign/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["parameters"]["prediction_id"])


def value_of(client: TestClient, series: str) -> float | None:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(series + " ")]
    return float(lines[0].rsplit(" ", 1)[1]) if lines else None


def wait_for(client: TestClient, series: str, value: float) -> None:
    deadline = time.monotonic() + 10
    while (found := value_of(client, series)) != value:
        assert time.monotonic() < deadline, f"{series} is {found}, not {value}"
        time.sleep(0.02)


def test_counters_start_from_zero_before_the_first_request(client: TestClient) -> None:
    assert value_of(client, 'semr_feedback_total{correct="true",model="sign",version="3"}') == 0
    first_bin = 'bin="00",feature="value",group="column_0",model="sign",version="3"'
    assert value_of(client, f"semr_input_bin_total{{{first_bin}}}") == 0
    assert value_of(client, f"semr_input_reference_ratio{{{first_bin}}}") == pytest.approx(50.5 / 505)
    assert value_of(client, 'semr_input_reference_rows{model="sign",version="3"}') == 500
    assert value_of(client, 'semr_model_trained_timestamp_seconds{model="sign",version="3"}') == 1000
    assert value_of(client, 'semr_model_reference_accuracy{model="sign",version="3"}') == 0.97


def test_inputs_and_predictions_are_counted(client: TestClient) -> None:
    for _ in range(5):
        ask(client, np.array([[9.0, 9.0], [-9.0, 9.0]], np.float32))
    wait_for(client, 'semr_input_scored_rows_total{model="sign",version="3"}', 10)
    assert value_of(client, 'semr_predictions_total{model="sign",output="1",version="3"}') == 5
    assert value_of(client, 'semr_prediction_confidence_count{model="sign",version="3"}') == 10
    labels = 'feature="value",group="column_1",model="sign",version="3"'
    assert value_of(client, f'semr_input_bin_total{{bin="09",{labels}}}') == 10
    assert value_of(client, f'semr_input_bin_total{{bin="08",{labels}}}') == 0


def test_feedback_is_joined_once_under_the_version_that_predicted(client: TestClient) -> None:
    token = ask(client, np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], np.float32))
    body = {"prediction_id": token, "labels": [1, 0, None]}
    answer = client.post("/v2/models/sign/feedback", json=body)
    assert answer.json() == {
        "model_name": "sign",
        "model_version": "3",
        "examples": 2,
        "correct": 1,
        "duplicate": False,
    }
    again = client.post("/feedback", json=body).json()
    assert (again["duplicate"], again["examples"]) == (True, 0)
    assert value_of(client, 'semr_feedback_total{correct="true",model="sign",version="3"}') == 1
    assert value_of(client, 'semr_feedback_total{correct="false",model="sign",version="3"}') == 1


def test_a_single_example_takes_a_single_label(client: TestClient) -> None:
    token = ask(client, np.array([[1.0, 0.0]], np.float32))
    assert client.post("/feedback", json={"prediction_id": token, "label": 1}).json()["correct"] == 1


def test_any_replica_judges(client: TestClient) -> None:
    """A token made by another process of the same model and an older version."""
    token = prediction_id.make("sign", "2", classes(np.array([1, 1])))
    answer = client.post("/feedback", json={"prediction_id": token, "labels": [1, 1]}).json()
    assert (answer["model_version"], answer["correct"]) == ("2", 2)


def of_another_model() -> str:
    return prediction_id.make("other", "3", classes(np.array([1])))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prediction_id": "nonsense", "label": 1}, "not a prediction id"),
        ({"prediction_id": "ümlaut", "label": 1}, "not a prediction id"),
        ({"prediction_id": of_another_model(), "label": 1}, "not a prediction id"),
        ({"prediction_id": prediction_id.make("sign", "3", classes(np.array([1, 2]))), "label": 1}, "has 2 examples"),
        ({"prediction_id": prediction_id.make("sign", "3", None), "label": 1}, "no classes"),
        ({"prediction_id": prediction_id.make("sign", "3", classes(np.array([1])))}, "`label`, `labels` or `values`"),
        ({"prediction_id": "x", "label": 1, "labels": [1]}, "`label`, `labels` or `values`"),
        ({"prediction_id": "x", "labels": []}, "labels"),
        ({"prediction_id": "x", "labels": [2**40]}, "32 bit"),
        ({"prediction_id": "x", "label": "one"}, "label"),
        ({"label": 1}, "prediction_id"),
    ],
)
def test_malformed_feedback_gets_a_sentence(client: TestClient, body: dict, words: str) -> None:
    answer = client.post("/v2/models/sign/feedback", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_unmatched_feedback_is_counted_and_other_models_are_not_found(client: TestClient) -> None:
    client.post("/feedback", json={"prediction_id": of_another_model(), "label": 1})
    assert value_of(client, 'semr_feedback_unmatched_total{model="sign"}') == 1
    assert client.post("/v2/models/other/feedback", json={"prediction_id": "x", "label": 1}).status_code == 404


def test_a_version_whose_baseline_cannot_be_read_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder_module, "load", lambda _, version: sign_model(version))
    sink = PrometheusSink()
    metrics = ServerMetrics([sink])
    observer = Observer("sign", metrics.sinks, baseline_of=baseline)
    holder = ModelHolder("sign", metrics, watched_by=observer)
    assert holder.switch("9")
    observer.observe("9", "token", np.zeros((2, 2)), None)
    observer.close()
    assert b"semr_input_reference_rows{" not in sink.render()


def test_inputs_that_do_not_fit_the_reference_are_skipped() -> None:
    sink = PrometheusSink()
    observer = Observer("sign", (sink,), baseline_of=baseline)
    observer.watch(sign_model().ref)
    observer.observe("3", "token", np.zeros((4, 5)), None)
    observer.close()
    assert b'semr_input_skipped_rows_total{model="sign",version="3"} 4.0' in sink.render()


def test_rows_above_the_limit_are_sampled_out() -> None:
    sink = PrometheusSink()
    observer = Observer("sign", (sink,), baseline_of=baseline, rows_per_second=50)
    observer.watch(sign_model().ref)
    observer.observe("3", "token", np.zeros((1000, 2)), None)
    observer.close()
    text = sink.render()
    assert b'semr_input_scored_rows_total{model="sign",version="3"} 100.0' in text
    assert b'semr_input_skipped_rows_total{model="sign",version="3"} 900.0' in text


@pytest.mark.parametrize("predicted", [None, [0], [9, 0, 3], [1000], [-70_000], [2**63 - 1, -(2**63)]])
def test_prediction_ids_say_what_was_put_into_them(predicted: list[int] | None) -> None:
    said = None if predicted is None else classes(np.array(predicted, np.int64))
    parsed = prediction_id.parse("m", prediction_id.make("m", "12", said))
    assert parsed.version == "12"
    assert parsed.time == pytest.approx(time.time(), abs=5)
    assert (None if parsed.classes is None else parsed.classes.tolist()) == predicted


def test_no_garbled_prediction_id_passes() -> None:
    token = prediction_id.make("m", "3", classes(np.array([1, 2, 3])))
    random = np.random.default_rng(0)
    alphabet = list("ABCDEFGHabcdefgh0123-_")
    for _ in range(300):
        at = int(random.integers(len(token) - 1))
        letter = str(random.choice(alphabet))
        garbled = token[:at] + letter + token[at + 1 :]
        if garbled != token:
            with pytest.raises(PredictionIdError):
                prediction_id.parse("m", garbled)
    for length in range(len(token) - 2):
        with pytest.raises(PredictionIdError):
            prediction_id.parse("m", token[:length])


def test_classes_are_found_in_outputs() -> None:
    probabilities = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    said = classify({"p": probabilities})
    assert said is not None
    assert said.classes.tolist() == [1, 0]
    assert classify({"y": probabilities * 5}) is None
    assert classify({"y": np.full((2, 2), np.nan)}) is None
    integers = classify({"y": np.ones((2, 3)), "class": np.array([4, 5])})
    assert integers is not None
    assert integers.classes.tolist() == [4, 5]
    assert integers.confidences is None


@pytest.mark.parametrize("classes", [2, 10, 64, 65])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_row_is_classified_as_several_are(classes: int, dtype: type[np.floating[Any]]) -> None:
    rows = np.random.default_rng(classes).dirichlet(np.ones(classes), 20).astype(dtype)
    rows[0], rows[1, 0], rows[2] = 1 / classes, -0.1, 0.9
    for row in rows:
        alone, among = classify({"y": row[None]}), classify({"y": np.stack([row, row])})
        assert (alone is None) == (among is None)
        if alone is not None and among is not None:
            assert alone.classes.tolist() == among.classes[:1].tolist()
            assert alone.confidences is not None and among.confidences is not None
            assert alone.confidences.tolist() == among.confidences[:1].tolist()


def test_the_buffer_is_bounded_and_gives_the_rest_after_closing() -> None:
    buffer: BoundedBuffer[int] = BoundedBuffer(10)
    assert buffer.offer(1, 6)
    assert not buffer.offer(2, 6)
    assert buffer.offer(3, 4)
    buffer.close()
    assert not buffer.offer(4, 1)
    assert buffer.drain() == [1, 3]
    assert buffer.drain() == []


def test_the_row_limit_lets_a_burst_pass_and_then_the_rate() -> None:
    limit = RowLimit(100, burst_seconds=1)
    assert limit.take(1000) == 100
    time.sleep(0.2)
    assert 15 <= limit.take(1000) <= 60


def test_gauges_of_old_versions_go_and_counters_stay() -> None:
    sink = PrometheusSink()
    observer = Observer("sign", (sink,), baseline_of=baseline)
    for version in ("3", "4", "5", "4"):
        observer.watch(sign_model(version).ref)
    observer.close()
    text = sink.render().decode()
    assert 'semr_input_reference_rows{model="sign",version="3"}' not in text
    assert 'semr_input_reference_rows{model="sign",version="4"} 500.0' in text
    assert 'semr_input_reference_rows{model="sign",version="5"} 500.0' in text
    assert 'semr_input_scored_rows_total{model="sign",version="3"} 0.0' in text


def double_model(tolerance: tuple[float, ...] | None) -> LoadedModel:
    """Forecasts twice the two columns of the last step."""

    def predict(inputs: dict[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"][:, -1] * 2}

    return LoadedModel(
        ref=ModelVersionRef("double", "3", "models:/double/3", "run", {}),
        platform="test",
        inputs=(TensorMetadata(name="x", datatype="FP32", shape=[-1, 4, 2]),),
        outputs=(TensorMetadata(name="y", datatype="FP32", shape=[-1, 2]),),
        _predict=predict,
        tolerance=tolerance,
    )


@pytest.fixture
def forecaster(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    sink = PrometheusSink()
    metrics = ServerMetrics([sink])
    observer = Observer("double", metrics.sinks)
    holder = ModelHolder("double", metrics, watched_by=observer)
    monkeypatch.setattr(holder_module, "load", lambda *_: double_model((0.5, 2.0)))
    assert holder.switch("3")
    with TestClient(create_app(lambda: ServerState(holder, sink))) as client:
        yield client
    observer.close()


def test_a_forecast_is_right_within_its_tolerance(forecaster: TestClient) -> None:
    window = np.zeros((3, 4, 2), np.float32)
    window[:, -1] = [[1, 2], [3, 4], [5, 6]]
    tensor = {"name": "x", "datatype": "FP32", "shape": list(window.shape), "data": window.ravel().tolist()}
    token = forecaster.post("/v2/models/double/infer", json={"inputs": [tensor]}).json()["parameters"]["prediction_id"]
    # Forecast are (2, 4), (6, 8), (10, 12): near enough, one value too far off, not known.
    body = {"prediction_id": token, "values": [[2.5, 2.0], [6.6, 8.0], None]}
    answer = forecaster.post("/v2/models/double/feedback", json=body).json()
    assert (answer["examples"], answer["correct"]) == (2, 1)
    assert value_of(forecaster, 'semr_feedback_total{correct="true",model="double",version="3"}') == 1
    errors = 'semr_feedback_absolute_error_total{model="double",output="%d",version="3"}'
    assert value_of(forecaster, errors % 0) == pytest.approx(0.5 + 0.6, abs=1e-5)
    assert value_of(forecaster, errors % 1) == pytest.approx(2.0)
    wrong = {"prediction_id": token, "labels": [1, 2, 3]}
    assert "takes `values`" in forecaster.post("/v2/models/double/feedback", json=wrong).json()["error"]
    narrow = {"prediction_id": token, "values": [[1.0], None, None]}
    assert "forecasts 2 values" in forecaster.post("/v2/models/double/feedback", json=narrow).json()["error"]


def test_prediction_ids_carry_forecasts() -> None:
    said = Forecast(np.array([[1.5, -2], [3e9, 0]], np.float32), (0.25, 8.0))
    parsed = prediction_id.parse("m", prediction_id.make("m", "12", said)).said
    assert isinstance(parsed, Forecast)
    assert parsed.tolerance == said.tolerance
    np.testing.assert_array_equal(parsed.values, said.values)


def test_only_a_model_that_declares_a_tolerance_forecasts() -> None:
    probabilities = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    assert isinstance(understand({"p": probabilities}, None), Classification)
    assert isinstance(understand({"p": probabilities}, (1.0, 1.0)), Forecast)
    assert understand({"p": probabilities}, (1.0,)) is None
