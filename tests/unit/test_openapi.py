"""The server against its own OpenAPI description: requests that fit it and that do not, made up by Schemathesis.

A thousand cases here; `st run URL/openapi.json --max-examples 400` makes about ten thousand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from serving import save_steps, server

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "negative_data_rejection",
)


def test_no_made_up_request_breaks_the_server_or_its_description(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    st = Path(sys.executable).parent / "st"
    extension = ("--extension", "workflow_examples.mnist.predict_image")
    with server(tmp_path, "--model", str(save_steps(tmp_path)), *extension) as started:
        started.wait_until_ready()
        command = [str(st), "run", f"{started.url}/openapi.json", "--checks", ",".join(CHECKS)]
        command += ["--max-examples", "30", "--seed", "1", "--no-color"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=tmp_path)
        assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
        assert "Traceback" not in started.errors.read_text()
