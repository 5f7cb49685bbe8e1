"""Prediction ids: opaque tokens that carry all that feedback needs, so that any replica can judge it without shared state.

A token is URL-safe base64 of: format, time, random id, version, what was predicted, check sum. A classifier's prediction are
its classes; a forecaster's the number of values a row, the tolerance of each, and the values. The check sum covers the
model's name too, so that a garbled id, or one of another model, is told from a good one. It is no signature: who may send
feedback may send any.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import struct
import time
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semr.errors import InvalidInputError
from semr.monitoring.classification import Classification, Forecast, Said

_FORMAT = 1
_FORECAST_FORMAT = 2
# Format, microseconds since 1970, random id, length of the version, bytes per class (0: no classes) or values per row.
_HEADER = struct.Struct(">BQ8sBB")
_CHECK_SUM = struct.Struct(">I")
_WIDTHS = (1, 2, 4, 8)
#: About a million one-byte classes; a longer token is refused unread.
MOST_CHARACTERS = 1_500_000
#: Values of a forecast for one row; a model that gives more has predictions without feedback.
MOST_VALUES = 255


class PredictionIdError(InvalidInputError):
    """A prediction id that this model never gave out."""


@dataclass(frozen=True)
class PredictionId:
    """What a token says.

    Attributes:
        version: model version that predicted.
        time: seconds since 1970.
        nonce: random, tells predictions apart.
        said: predicted classes or values, None when the model gives neither; the probabilities of classes are not kept.
    """

    version: str
    time: float
    nonce: bytes
    said: Said | None

    @property
    def classes(self) -> npt.NDArray[np.int64] | None:
        """Predicted classes (rows,), None when the model is no classifier."""
        return self.said.classes if isinstance(self.said, Classification) else None


def make(model: str, version: str, said: Said | None) -> str:
    """A new token for an answer of `model` in `version`."""
    if isinstance(said, Forecast) and len(said.tolerance) <= MOST_VALUES:
        kind, width = _FORECAST_FORMAT, len(said.tolerance)
        body = np.concatenate([np.asarray(said.tolerance), said.values.reshape(-1)]).astype(">f4").tobytes()
    else:
        classes = said.classes if isinstance(said, Classification) else None
        kind, width = _FORMAT, _width(classes)
        body = classes.astype(f">i{width}").tobytes() if classes is not None else b""
    head = _HEADER.pack(kind, time.time_ns() // 1000, secrets.token_bytes(8), len(version.encode()), width)
    payload = head + version.encode() + body
    return base64.urlsafe_b64encode(payload + _check_sum(model, payload)).rstrip(b"=").decode()


def parse(model: str, token: str) -> PredictionId:
    """What `make` put into the token.

    Raises:
        PredictionIdError: it is garbled, or of another model.
    """
    refusal = PredictionIdError(
        f"This is not a prediction id of model {model!r}: send back `parameters.prediction_id` of its answer unchanged."
    )
    if not token.isascii() or len(token) > MOST_CHARACTERS:
        raise refusal
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise refusal from error
    payload, check_sum = data[: -_CHECK_SUM.size], data[-_CHECK_SUM.size :]
    if len(payload) < _HEADER.size or check_sum != _check_sum(model, payload):
        raise refusal
    kind, microseconds, nonce, version_length, width = _HEADER.unpack_from(payload)
    version_end = _HEADER.size + version_length
    body = payload[version_end:]
    said: Said | None = None
    if kind == _FORECAST_FORMAT and width and len(body) >= 4 * width and len(body) % (4 * width) == 0:
        numbers = np.frombuffer(body, ">f4").astype(np.float32).reshape(-1, width)
        said = Forecast(numbers[1:], tuple(numbers[0].tolist()))
    elif kind == _FORMAT and width in (0, *_WIDTHS) and not len(body) % (width or 1):
        said = Classification(np.frombuffer(body, f">i{width}").astype(np.int64), None) if width else None
    else:
        raise refusal
    version = payload[_HEADER.size : version_end].decode(errors="replace")
    return PredictionId(version, microseconds / 1e6, nonce, said)


def _width(classes: npt.NDArray[np.int64] | None) -> int:
    """Bytes that hold every class; 0 for no classes."""
    if classes is None:
        return 0
    # One example a request is the common case, and reductions take longer than all else here.
    low = high = int(classes[0]) if len(classes) == 1 else 0
    if len(classes) > 1:
        low, high = int(classes.min()), int(classes.max())
    return next(width for width in _WIDTHS if -(2 ** (8 * width - 1)) <= low and high < 2 ** (8 * width - 1))


def _check_sum(model: str, payload: bytes) -> bytes:
    return _CHECK_SUM.pack(zlib.crc32(payload, zlib.crc32(model.encode())))
