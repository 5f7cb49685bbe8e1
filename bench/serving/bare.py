"""The bare ASGI application that the alone host is compared with: JSON in, ONNX Runtime, JSON out, and nothing else.

It takes the same requests and believes whatever they say.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson

_options = ort.SessionOptions()
_options.intra_op_num_threads = 1
_session = ort.InferenceSession(os.environ["BENCH_ONNX_FILE"], _options, providers=["CPUExecutionProvider"])
_name = _session.get_inputs()[0].name


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer any request as one to infer."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if not body:  # the check that the server is up
        answer = b"{}"
    else:
        tensor = orjson.loads(body)["inputs"][0]
        array = np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])
        output = _session.run(None, {_name: array})[0]
        content = {"outputs": [{"shape": output.shape, "datatype": "FP32", "data": output.reshape(-1)}]}
        answer = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
