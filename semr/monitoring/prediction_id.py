"""Prediction ids: opaque tokens that carry all that feedback needs, so that any replica can judge it without shared state.

A token is URL-safe base64 of: format, time, random id, version, predicted classes, check sum. The check sum covers the
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

_FORMAT = 1
# Format, microseconds since 1970, random id, length of the version, bytes per class (0: no classes).
_HEADER = struct.Struct(">BQ8sBB")
_CHECK_SUM = struct.Struct(">I")
_WIDTHS = (1, 2, 4, 8)
#: About a million one-byte classes; a longer token is refused unread.
MOST_CHARACTERS = 1_500_000


class PredictionIdError(InvalidInputError):
    """A prediction id that this model never gave out."""


@dataclass(frozen=True)
class PredictionId:
    """What a token says.

    Attributes:
        version: model version that predicted.
        time: seconds since 1970.
        nonce: random, tells predictions apart.
        classes: predicted classes (rows,), None when the model is no classifier.
    """

    version: str
    time: float
    nonce: bytes
    classes: npt.NDArray[np.int64] | None


def make(model: str, version: str, classes: npt.NDArray[np.int64] | None) -> str:
    """A new token for an answer of `model` in `version`."""
    width = _width(classes)
    head = _HEADER.pack(_FORMAT, time.time_ns() // 1000, secrets.token_bytes(8), len(version.encode()), width)
    payload = head + version.encode()
    if classes is not None:
        payload += classes.astype(f">i{width}").tobytes()
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
    if kind != _FORMAT or width not in (0, *_WIDTHS) or len(body) % (width or 1):
        raise refusal
    classes = np.frombuffer(body, f">i{width}").astype(np.int64) if width else None
    version = payload[_HEADER.size : version_end].decode(errors="replace")
    return PredictionId(version, microseconds / 1e6, nonce, classes)


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
