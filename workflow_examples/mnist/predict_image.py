"""A path for a person with a picture in their hand: `POST /v1/models/{model}:predict-image`, a file in multipart form.

An extension of the model server, in either host. Models that `train` logs bring it along; for another one:
`--extension workflow_examples.mnist.predict_image`, or SEMR_INFERENCE_EXTENSIONS='["workflow_examples.mnist.predict_image"]'.
"""

from __future__ import annotations

import io
from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, File, UploadFile
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel

from semr.inference.http_errors import HttpError
from semr.inference.protocol import ErrorResponse
from semr.inference.service import InferenceService
from workflow_examples.mnist.model import IMAGE_SIZE, to_input

# A photo of a telephone has 50 million; what is announced as more would be unpacked to gigabytes.
MOST_PIXELS = 64_000_000
_WHITE_SIDE = 128


class ImagePrediction(BaseModel):
    """What the picture shows.

    Attributes:
        label: the digit.
        probability: how sure the model is, 0 to 1.
        probabilities: of each digit.
        prediction_id: to tell the truth with, at `/feedback`.
    """

    model_name: str
    model_version: str
    label: int
    probability: float
    probabilities: list[float]
    prediction_id: str


def add_routes(app: FastAPI, service: InferenceService) -> None:
    """Add the path to the model server's application."""
    statuses = (400, 404, 408, 413, 415, 500, 503, 504)

    @app.post("/v1/models/{model}:predict-image", responses={status: {"model": ErrorResponse} for status in statuses})
    async def predict_image(model: str, image: Annotated[UploadFile, File()]) -> ImagePrediction:
        loaded = service.find(model, None)
        if len(loaded.inputs) != 1:
            raise HttpError(400, f"Model {model!r} has {len(loaded.inputs)} inputs, so a picture is not enough for it.")
        picture = to_input(read_image(await image.read()))
        service.admit()
        try:
            answer = await service.infer(loaded, {loaded.inputs[0].name: picture})
        finally:
            service.leave()
        probabilities = next(iter(answer.outputs.values()))[0]
        label = int(probabilities.argmax())
        return ImagePrediction(
            model_name=loaded.ref.name,
            model_version=answer.version,
            label=label,
            probability=float(probabilities[label]),
            probabilities=probabilities.tolist(),
            prediction_id=answer.prediction_id,
        )


def read_image(content: bytes) -> npt.NDArray[np.uint8]:
    """A picture of any format that Pillow reads, as MNIST's are: grey (1, 28, 28), white ink on black, upright.

    A picture on a light ground is inverted.

    Raises:
        HttpError: 400 for what is no picture, 413 for one of more than `MOST_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise HttpError(413, f"The picture has more than {MOST_PIXELS} pixels: send a smaller one.")
            upright = ImageOps.exif_transpose(opened)
            if upright.has_transparency_data:
                ground = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(ground, upright.convert("RGBA"))
            grey = upright.convert("L")
            small = np.asarray(ImageOps.pad(grey, (IMAGE_SIZE, IMAGE_SIZE), color=_ground(grey)), np.uint8)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise HttpError(400, "The file is no picture that can be read: send a PNG, JPEG or the like.") from error
    return (255 - small if _ground(grey) > _WHITE_SIDE else small)[np.newaxis]


def _ground(grey: Image.Image) -> int:
    """Grey value of the ground: the median along the picture's edge."""
    pixels = np.asarray(grey)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return int(np.median(edge))
