"""Pictures to the model server by multipart form, through its application over a real (small) model function."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from semr.errors import SettingsError
from semr.inference.app import ServerState, create_app
from semr.inference.holder import ModelHolder
from semr.inference.metrics import PrometheusSink, ServerMetrics
from semr.inference.protocol import TensorMetadata
from semr.inference.runtime import LoadedModel
from semr.inference.tensors import Array
from semr.registry import ModelVersionRef

PATH = "/v1/models/mnist:predict-image"


def where_the_ink_is(inputs: dict[str, Array]) -> dict[str, Array]:
    """Class 1 for ink in the left half, 2 for the right one."""
    (image,) = inputs.values()
    left, right = image[:, :, :14].sum(axis=(1, 2, 3)), image[:, :, 14:].sum(axis=(1, 2, 3))
    total = left + right + 1e-6
    scores = np.zeros((len(image), 10), np.float32)
    scores[:, 1], scores[:, 2] = left / total, right / total
    scores[:, 0] = 1 - scores.sum(axis=1)
    return {"probabilities": scores}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    loaded = LoadedModel(
        ref=ModelVersionRef("mnist", "5", "models:/mnist/5", "run", {}),
        platform="test",
        inputs=(TensorMetadata(name="image", datatype="FP32", shape=[-1, 28, 28, 1]),),
        outputs=(TensorMetadata(name="probabilities", datatype="FP32", shape=[-1, 10]),),
        _predict=where_the_ink_is,
        extensions=("no.such.module", "workflow_examples.mnist.predict_image"),
    )
    sink = PrometheusSink()
    state = ServerState(ModelHolder("mnist", ServerMetrics([sink]), current=loaded), sink)
    app = create_app(lambda: state)
    with TestClient(app) as client:
        yield client


def picture(ground: int, ink: int, *, right: bool, size: tuple[int, int] = (28, 28), kind: str = "PNG") -> bytes:
    pixels = np.full((size[1], size[0]), ground, np.uint8)
    middle = size[0] // 2
    start = middle + size[0] // 8 if right else size[0] // 8
    pixels[size[1] // 4 : -size[1] // 4, start : start + size[0] // 4] = ink
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize(("ground", "ink"), [(0, 255), (255, 0)])
@pytest.mark.parametrize(("size", "kind"), [((28, 28), "PNG"), ((300, 200), "JPEG")])
def test_a_picture_is_seen_as_mnist_has_them(
    client: TestClient, ground: int, ink: int, size: tuple[int, int], kind: str, right: bool
) -> None:
    content = picture(ground, ink, right=right, size=size, kind=kind)
    answer = client.post(PATH, files={"image": content})
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == (2 if right else 1)
    assert answer.json()["model_version"] == "5"
    told = client.post("/feedback", json={"prediction_id": answer.json()["prediction_id"], "label": 2})
    assert told.json()["correct"] == int(right)


@pytest.mark.parametrize("content", [b"", b"no picture", picture(0, 255, right=True)[:60]])
def test_what_is_no_picture_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.post(PATH, files={"image": content})
    assert answer.status_code == 400
    assert "error" in answer.json()


def test_other_forms_and_models_are_refused(client: TestClient) -> None:
    assert client.post(PATH, files={"photo": b"x"}).status_code == 400
    assert client.post(PATH, json={}).status_code == 400
    assert client.post("/v1/models/other:predict-image", files={"image": b"x"}).status_code == 404


def test_the_path_is_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/models/{model}:predict-image", "/v2/models/{model}/infer"} <= set(paths)


def test_an_extension_that_is_none_is_named() -> None:
    for name in ("no.such.module", "json"):
        with pytest.raises(SettingsError, match=name):
            create_app(lambda: pytest.fail("not asked for"), extensions=[name])
