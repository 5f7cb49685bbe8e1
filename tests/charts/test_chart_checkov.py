"""checkov finds nothing but what is meant so."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from chart_tools import ROOT, Helm, values_of

# It pins so many packages that it needs an environment of its own, which uv makes and keeps.
CHECKOV = "checkov==3.3.30"
# Check to the objects on which it may fail, and why.
MEANT = {
    # A limit throttles a server that could use idle CPU; memory, which cannot be shared out again, is limited.
    "CKV_K8S_11": ".*",
    # A tag names both architectures' images and says its version; who wants digests sets `image.tag` to tag@digest.
    "CKV_K8S_43": ".*",
    # Tags are pinned, so a second pull brings the same; an edge node may have no network when a pod restarts.
    "CKV_K8S_15": ".*",
    # The contract is an environment: libraries of S3, MLflow, Ray and PostgreSQL read theirs from there too.
    "CKV_K8S_35": ".*",
    # The users of the official images, whose files belong to them; each can be set by `runAsUser`.
    "CKV_K8S_40": ".*",
    # They change the RayService, a launch in the pod at its end, the job at first; their Roles say what they may, and no more.
    "CKV_K8S_38": r"Deployment\.ml\.semr-evolution|Job\.ml\.semr-serving-setup-.*",
    # pyflyte unpacks fast-registered code, and a user's task writes where it likes; the value can be set to true.
    "CKV_K8S_22": r"PodTemplate\.ml\.semr-tasks",
    # Flyte keeps the certificate of its one webhook in its configuration; the role may change that one only.
    "CKV_K8S_155": r"ClusterRole\.default\.ml-semr-flyte-binary",
    # They end by themselves.
    "CKV_K8S_8": r"Pod\.ml\.semr-test-.*|PodTemplate\.ml\.semr-tasks",
    "CKV_K8S_9": r"Pod\.ml\.semr-test-.*|PodTemplate\.ml\.semr-tasks",
}


def test_checkov_finds_only_what_is_meant(helm: Helm, tmp_path: Path) -> None:
    for chart, profile in (
        ("SEMR", "values_example"),
        ("SEMR", "everything-on-values"),
        ("SEMR_inference", "everything-on-values"),
    ):
        done = helm.template(chart, "--values", values_of(chart, profile))
        assert done.returncode == 0, done.stderr
        (tmp_path / f"{chart}-{profile}.yaml").write_text(done.stdout)
    found = subprocess.run(
        [str(ROOT / "helper_scripts" / "find-uv.sh")], capture_output=True, text=True, timeout=120, check=False
    )
    if found.returncode != 0:
        pytest.skip(f"no uv, which would bring checkov: {found.stderr.strip()}")
    program = [found.stdout.strip(), "tool", "run", "--from", CHECKOV, "checkov"]
    environment = {**os.environ, "LOG_LEVEL": "ERROR"}
    there = subprocess.run(
        [*program, "--version"], capture_output=True, text=True, timeout=400, check=False, env=environment
    )
    if there.returncode != 0:
        pytest.skip(f"{CHECKOV} cannot be installed: {there.stderr.strip()[-300:]}")
    done = subprocess.run(
        [*program, "--framework", "kubernetes", "--directory", str(tmp_path), "--output", "json", "--quiet", "--compact"],
        capture_output=True, text=True, timeout=400, check=False, env=environment,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0 and report["summary"]["passed"] > 1000
    failed = {(each["check_id"], each["resource"], each["check_name"]) for each in report["results"]["failed_checks"]}
    unmeant = [each for each in failed if not re.fullmatch(MEANT.get(each[0], "-"), each[1])]
    assert not unmeant
    # An exception that nothing needs any more is taken out.
    assert set(MEANT) == {each[0] for each in failed}
