"""Client of a model server that speaks the Open Inference Protocol V2: what tests, verification and traffic use."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from semr.errors import DependencyUnavailableError, SemrError
from semr.inference.codec import HEADER_LENGTH, encode_request
from semr.inference.protocol import PREDICTION_ID, Array, InferResponse, ModelMetadata


class InferenceError(SemrError):
    """The server answered a request with an error.

    Args:
        status: HTTP status.
        message: the server's own sentence.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(f"the model server answered {status}: {message}")

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return (type(self), (self.status, self.message))


@dataclass(frozen=True)
class Prediction:
    """Outputs by name, the version that made them, and the id to give feedback with ("" from a server without feedback)."""

    outputs: dict[str, Array]
    version: str
    prediction_id: str = ""


class InferenceClient:
    """Requests to the model `model` below `url` (what stands before `/v2`); a context manager that keeps connections.

    Threads may share it. Each has connections of its own: a pool of httpx closes idle ones (too old, or too many) even while
    another thread that was given one has not begun to write, which then meets a bad file descriptor.
    """

    def __init__(self, url: str, model: str, *, timeout_seconds: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self._timeout_seconds = timeout_seconds
        self._of_thread = threading.local()
        self._clients: list[httpx.Client] = []

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._clients:
            self._clients.pop().close()

    def metadata(self) -> ModelMetadata:
        """Names, datatypes and shapes of the model's tensors."""
        return ModelMetadata.model_validate_json(self._ask("GET", f"/v2/models/{self.model}").content)

    def readiness(self, version: str | None = None) -> tuple[bool, str]:
        """Whether the model (in `version`, if given) answers, and if not, why."""
        path = f"/v2/models/{self.model}" + (f"/versions/{version}" if version else "") + "/ready"
        try:
            self._ask("GET", path)
        except (InferenceError, DependencyUnavailableError) as error:
            return False, str(error)
        return True, ""

    def infer(self, inputs: Mapping[str, Array], *, request_id: str | None = None) -> Prediction:
        """Predict for a batch; the inputs travel as raw bytes (binary tensor extension), the answer as JSON.

        Raises:
            InferenceError: the server refused or failed.
            DependencyUnavailableError: no answer.
        """
        body, json_length = encode_request(inputs, request_id)
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(json_length)}
        answer = self._ask("POST", f"/v2/models/{self.model}/infer", body, headers)
        response = InferResponse.model_validate_json(answer.content)
        outputs = {output.name: output.to_array() for output in response.outputs}
        token = (response.parameters or {}).get(PREDICTION_ID, "")
        return Prediction(outputs, response.model_version, str(token))

    def feedback(self, prediction_id: str, labels: Sequence[int | None]) -> int:
        """Tell the truth about a prediction: a label for each of its examples, None where it is not known.

        Returns how many of the labels the model had predicted; 0 when this prediction had its labels before.

        Raises:
            InferenceError: the server does not know the prediction, or the number of labels is wrong.
            DependencyUnavailableError: no answer.
        """
        return self._tell({PREDICTION_ID: prediction_id, "labels": list(labels)})

    def feedback_values(self, prediction_id: str, values: Sequence[Sequence[float] | None]) -> int:
        """Tell the truth about a forecast: the true values of each of its examples, None where they are not known.

        Returns how many of the examples were forecast within the model's tolerance; raises as `feedback`.
        """
        told = [None if each is None else [float(value) for value in each] for each in values]
        return self._tell({PREDICTION_ID: prediction_id, "values": told})

    def _tell(self, content: Mapping[str, Any]) -> int:
        headers = {"Content-Type": "application/json"}
        body = json.dumps(content).encode()
        return int(self._ask("POST", f"/v2/models/{self.model}/feedback", body, headers).json()["correct"])

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        try:
            answer = self._client().request(method, path, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise DependencyUnavailableError("model server", self.url, str(error) or type(error).__name__) from error
        if answer.is_error:
            raise InferenceError(answer.status_code, _error_text(answer))
        return answer

    def _client(self) -> httpx.Client:
        client: httpx.Client | None = getattr(self._of_thread, "client", None)
        if client is None or client.is_closed:
            # Certificates take 20 ms to load, for each thread.
            is_secure = self.url.startswith("https:")
            client = httpx.Client(base_url=self.url, timeout=self._timeout_seconds, verify=is_secure)
            self._of_thread.client = client
            self._clients.append(client)
        return client


def _error_text(answer: httpx.Response) -> str:
    try:
        content = answer.json()
    except ValueError:
        content = None
    text = content.get("error") if isinstance(content, dict) else None
    return str(text or answer.text or answer.reason_phrase)[:500]
