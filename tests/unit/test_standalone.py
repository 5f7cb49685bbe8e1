"""The alone host as a process: clients of others, limits, stopping, several processes; on models saved in a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from serving import ServerProcess, infer_body, save_steps, server

from semr.inference.worker_metrics import merge

KSERVE = "kserve==0.21.0"
SLEEP, FAIL, NOT_A_NUMBER = (1000.0, 0.0), (2000.0, 0.0), (3000.0, 0.0)
INFER = "/v2/models/steps/infer"


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_steps(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def running(steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server(tmp_path_factory.mktemp("server"), "--model", str(steps)) as started:
        started.wait_until_ready()
        yield started


def test_tritons_client_gets_metadata_readiness_and_predictions(running: ServerProcess) -> None:
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(f"127.0.0.1:{running.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("steps")
    assert client.is_model_ready("steps", "1")
    assert not client.is_model_ready("steps", "2")
    assert client.get_server_metadata()["name"] == "semr"
    assert client.get_model_metadata("steps")["inputs"][0]["shape"] == [-1, 2]
    assert [each["state"] for each in client.get_model_repository_index()] == ["READY"]
    x = np.float32([[1, 2], [3, 4.5]])
    for is_binary in (True, False):
        tensor = http.InferInput("x", [2, 2], "FP32")
        tensor.set_data_from_numpy(x, binary_data=is_binary)
        for outputs in (None, [http.InferRequestedOutput("y", binary_data=is_binary)]):
            answer = client.infer("steps", [tensor], outputs=outputs, request_id="seven")
            np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)
            assert answer.get_response()["id"] == "seven"
    wrong = http.InferInput("x", [1, 3], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with pytest.raises(Exception, match="must have shape"):
        client.infer("steps", [wrong])


KSERVE_CLIENT = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30))
    x = np.array([[1, 2], [3, 4.5]], np.float32)
    said = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model": await client.is_model_ready(url, "steps"),
    }
    for is_binary in (False, True):
        tensor = InferInput("x", [2, 2], "FP32")
        tensor.set_data_from_numpy(x, binary_data=is_binary)
        wanted = [RequestedOutput("y", {"binary_data": is_binary})]
        request = InferRequest("steps", [tensor], "seven", request_outputs=wanted)
        answer = await client.infer(url, request, model_name="steps")
        said[f"binary={is_binary}"] = [answer.id, answer.model_name, answer.outputs[0].as_numpy().tolist()]
    print(json.dumps(said))

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(scope="session")
def kserve_python() -> str:
    """A Python with KServe's client, whose pins do not go with SEMR's: given, or set up once in the user's cache."""
    given = os.environ.get("SEMR_TEST_KSERVE_PYTHON")
    if given:
        return given
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semr" / KSERVE.replace("==", "-")
    python = cache / "bin" / "python"
    if python.is_file():
        return str(python)
    script = Path(__file__).parents[2] / "helper_scripts" / "find-uv.sh"
    building = cache.with_suffix(f".{os.getpid()}")
    try:
        uv = subprocess.run([str(script)], check=True, capture_output=True, text=True, timeout=120).stdout.strip()
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(building)], check=True, timeout=120)
        install = [uv, "pip", "install", "--quiet", "--python", str(building / "bin" / "python"), KSERVE]
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(building, ignore_errors=True)
        pytest.skip(f"{KSERVE} cannot be installed into an environment of its own here: {error}")
    building.rename(cache)
    return str(python)


def test_kserves_client_gets_readiness_and_predictions(running: ServerProcess, kserve_python: str) -> None:
    command = [kserve_python, "-c", KSERVE_CLIENT, running.url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    expected = ["seven", "steps", [[2, 4], [6, 9]]]
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "live": True,
        "ready": True,
        "model": True,
        "binary=False": expected,
        "binary=True": expected,
    }


def test_a_failing_model_is_500_without_its_secrets_and_the_log_has_them(running: ServerProcess) -> None:
    for row, words in ((FAIL, "failed on this request"), (NOT_A_NUMBER, "NaN or infinity in output 'y'")):
        answer = httpx.post(running.url + INFER, json=infer_body(row))
        assert answer.status_code == 500
        assert words in answer.json()["error"]
        assert "secret" not in answer.text
    assert "secret detail of the model" in running.errors.read_text()
    assert httpx.post(running.url + INFER, json=infer_body((1, 2))).status_code == 200


def test_every_request_is_a_line_of_json(running: ServerProcess) -> None:
    httpx.post(running.url + INFER, json=infer_body((1, 2)), headers={"X-Request-ID": "look-for-me"})
    httpx.get(f"{running.url}/v2/models/other", headers={"X-Request-ID": "look-for-me-too"})
    deadline = time.monotonic() + 10
    while True:
        lines = [json.loads(line) for line in running.output.read_text().splitlines()]
        found = {line["request_id"]: line for line in lines if line["request_id"].startswith("look-for-me")}
        if len(found) == 2:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (found["look-for-me"]["status"], found["look-for-me"]["model_version"]) == (200, "1")
    assert (found["look-for-me-too"]["status"], found["look-for-me-too"]["path"]) == (404, "/v2/models/other")
    assert found["look-for-me"]["milliseconds"] > 0


def test_a_client_that_goes_or_dawdles_harms_nobody(steps: Path, tmp_path: Path) -> None:
    with server(tmp_path, "--model", str(steps), environment={"SEMR_INFERENCE_BODY_TIMEOUT_S": "1"}) as started:
        started.wait_until_ready()
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", started.port)) as gone:
            gone.sendall(head + b'{"inp')
        with socket.create_connection(("127.0.0.1", started.port), timeout=20) as slow:
            slow.sendall(head + b'{"inp')
            answer = slow.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")
        assert httpx.post(started.url + INFER, json=infer_body((1, 2))).status_code == 200


def in_flight(url: str) -> float:
    found = re.search(r"^semr_inference_requests_in_flight\{.*\} (.*)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_overload_is_503_at_once_and_slowness_504(steps: Path, tmp_path: Path) -> None:
    arguments = ("--model", str(steps), "--queue", "4", "--timeout", "1.5")
    with server(tmp_path, *arguments, environment={"STEPS_SLEEP": "4"}) as started, ThreadPoolExecutor(12) as pool:
        started.wait_until_ready()

        def ask(_: int) -> tuple[int, str | None, float]:
            began = time.monotonic()
            answer = httpx.post(started.url + INFER, json=infer_body(SLEEP), timeout=30)
            return answer.status_code, answer.headers.get("retry-after"), time.monotonic() - began

        asked = [pool.submit(ask, number) for number in range(12)]
        deadline = time.monotonic() + 10
        while in_flight(started.url) != 4.0:  # what a cluster scales replicas by
            assert time.monotonic() < deadline
        answers = [each.result() for each in asked]
        assert in_flight(started.url) == 0.0
        assert sorted(status for status, _, _ in answers) == [503] * 8 + [504] * 4
        assert {after for status, after, _ in answers if status == 503} == {"1"}
        # Refused before the first of the slow ones came back.
        assert max(seconds for status, _, seconds in answers if status == 503) < 1.5
        ready = httpx.get(f"{started.url}/v2/health/ready")
        assert ready.status_code == 503
        assert "busy with one call" in ready.json()["error"]
        assert httpx.get(f"{started.url}/v2/health/live").status_code == 200
        deadline = time.monotonic() + 30
        while httpx.get(f"{started.url}/v2/health/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert httpx.post(started.url + INFER, json=infer_body((1, 2))).status_code == 200


def test_sigterm_finishes_what_is_in_flight_and_exits_0(steps: Path, tmp_path: Path) -> None:
    with server(tmp_path, "--model", str(steps), environment={"STEPS_SLEEP": "2"}) as started:
        started.wait_until_ready()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, started.url + INFER, json=infer_body(SLEEP), timeout=30)
            time.sleep(0.7)
            started.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{started.url}/v2/health/live")
            answer = asked.result()
        assert answer.status_code == 200
        assert answer.json()["outputs"][0]["data"] == [2000.0, 0.0]
        assert started.process.wait(30) == 0


def test_a_call_that_does_not_come_back_does_not_keep_the_server(steps: Path, tmp_path: Path) -> None:
    arguments = ("--model", str(steps), "--grace", "1")
    with server(tmp_path, *arguments, environment={"STEPS_SLEEP": "3600"}) as started:
        started.wait_until_ready()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, started.url + INFER, json=infer_body(SLEEP), timeout=60)
            time.sleep(0.5)
            assert started.terminate() == 0
            try:
                status = asked.result().status_code
            except httpx.HTTPError:
                return  # cut off
            assert status >= 500, "told that it was"


def test_several_processes_share_the_port_and_answer_for_each_other(steps: Path, tmp_path: Path) -> None:
    with server(tmp_path, "--model", str(steps), "--workers", "2") as started:
        started.wait_until_ready()
        deadline = time.monotonic() + 120
        children = psutil.Process(started.process.pid).children(recursive=True)
        answered: set[str] = set()
        while len(answered) < 2:
            assert time.monotonic() < deadline, (answered, started.errors.read_text())
            httpx.post(started.url + INFER, json=infer_body((1, 2)))
            lines = httpx.get(f"{started.url}/metrics").text.splitlines()
            counts = [line for line in lines if line.startswith("semr_inference_requests_total{") and 's="200"' in line]
            answered = {line.split('worker="')[1][0] for line in counts}
        victim = next(child for child in children if "spawn_main" in " ".join(child.cmdline()))
        victim.kill()
        while "is started again" not in started.errors.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started.wait_until_ready()
        assert started.terminate(60) == 0
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_samples_of_processes_stand_together_by_metric() -> None:
    texts = {
        "0": '# HELP a_total A.\n# TYPE a_total counter\na_total{x="{ }"} 1.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n',
        "1": '# HELP a_total A.\n# TYPE a_total counter\na_total{x="y"} 3.0\n',
    }
    assert merge(texts).splitlines() == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{worker="0",x="{ }"} 1.0',
        'a_total{worker="1",x="y"} 3.0',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{worker="0"} 2.0',
    ]


def test_a_model_that_cannot_be_loaded_is_live_not_ready_and_says_why(tmp_path: Path) -> None:
    path = save_steps(tmp_path)
    (path / "steps.py").write_text("raise RuntimeError('broken on purpose')")
    with server(tmp_path, "--model", str(path)) as started:
        deadline = time.monotonic() + 60
        while "broken on purpose" not in (text := httpx.get(f"{started.url}/v2/health/ready").text):
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
        assert httpx.get(f"{started.url}/v2/health/ready").status_code == 503
        assert httpx.get(f"{started.url}/v2/health/live").status_code == 200
        assert httpx.post(started.url + INFER, json=infer_body((1, 2))).status_code == 503
        (entry,) = httpx.post(f"{started.url}/v2/repository/index").json()
        assert (entry["state"], "broken on purpose" in entry["reason"]) == ("UNAVAILABLE", True)
        assert started.terminate() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "/tmp/"], "--name"),
        (["--model", "models:/mnist/3", "--follow"], "--follow needs an alias"),
        (["--model", "models:/mnist@champion", "--name", "other"], "registered as 'mnist'"),
        (["--model", "x", "--workers", "0"], "--workers"),
        (["--model", "x", "--queue", "0"], "SEMR_INFERENCE_QUEUE cannot be used"),
        (["--model", "x", "--port", "99999"], "cannot listen"),
        (["--model", "x", "--port", "0", "--extension", "no.such.module"], "no.such.module"),
    ],
)
def test_a_command_line_that_cannot_be_used_is_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semr.inference", *arguments]
    if "/tmp/" in arguments:
        command[command.index("/tmp/")] = "/"
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
