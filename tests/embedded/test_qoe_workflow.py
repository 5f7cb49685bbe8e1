"""The QoE workflow on a real stack: train, serve, forecast over HTTP, feedback, regime change, retraining, gate."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from stack_tools import RunningStack
from workflow_tools import no_model_left, unique

from semr import tracking
from semr.deployment.ray_serve import RayServeTarget
from semr.inference.client import InferenceClient
from semr.monitoring.live_data import read_labelled_window
from semr.monitoring.recorder import ROWS_PER_SECOND
from semr.registry import Registry
from semr.settings import ENV_FILE_VARIABLE, ENV_PREFIX
from semr.storage import ObjectStore
from workflow_examples.qoe import traffic
from workflow_examples.qoe.evaluate import read_split
from workflow_examples.qoe.features import WindowPlan
from workflow_examples.qoe.synthetic import Synthetic
from workflow_examples.qoe.wf_evolution import qoe_retrain, qoe_watch

pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
WORKFLOW = str(Path("workflow_examples", "qoe", "wf.py"))


@dataclass(frozen=True)
class Trained:
    """What one run of the workflow left."""

    output: str
    model: str


def run_workflow(stack: RunningStack, *arguments: str) -> str:
    """`pyflyte run` of `qoe_train`, as a user types it; returns its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("pyflyte")), "run", WORKFLOW, "qoe_train", *arguments],
        cwd=ROOT,
        env={**environment, ENV_FILE_VARIABLE: str(stack.folder / "env"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(stack: RunningStack) -> Iterator[Trained]:
    name = unique("qoe")
    with no_model_left(stack.settings, name):
        output = run_workflow(stack, "--model_name", name, "--epochs", "4", "--n", "1", "--bt_s", "128")
        yield Trained(output, name)


def url_of(stack: RunningStack, trained: Trained) -> str:
    return RayServeTarget(stack.settings).url(trained.model)


def test_the_log_is_a_line_an_epoch_the_errors_by_cell_and_the_verdict(trained: Trained) -> None:
    assert re.findall(r"epoch (\d)/4 loss \d\.\d+ val_loss \d\.\d+ \(\d+\.\d\d s\)", trained.output) == list("1234")
    assert "c1/B2 pdcpBytesDl" in trained.output
    assert re.search(r"is champion: better than \w+ by more than chance: rmse", trained.output), trained.output


def test_the_champion_has_its_lineage_and_is_better_than_its_baselines(stack: RunningStack, trained: Trained) -> None:
    registry = Registry(stack.settings)
    champion = registry.get(trained.model, "champion")
    tags = registry.tags(champion)
    store = ObjectStore.from_settings(stack.settings)
    dataset = store.dataset("qoe", tags["semr.dataset.version"])
    assert store.dataset("qoe-raw", dataset.parents[0]).source.startswith("synthetic")
    metrics = champion.metrics
    assert metrics["holdout_rmse"] < min(metrics["persistence_rmse"], metrics["moving_average_rmse"])
    assert metrics["better_than_baselines"] == 1
    artifacts = {each.path for each in tracking.connect(stack.settings).list_artifacts(champion.run_id, "evaluation")}
    assert artifacts == {"evaluation/report.json", "evaluation/errors_by_cell.png"}


def test_forecasts_over_http_are_those_that_were_judged(stack: RunningStack, trained: Trained) -> None:
    champion = Registry(stack.settings).get(trained.model, "champion")
    store = ObjectStore.from_settings(stack.settings)
    version = Registry(stack.settings).tags(champion)["semr.dataset.version"]
    holdout = read_split(store, store.dataset("qoe", version), "holdout")
    with InferenceClient(url_of(stack, trained), trained.model) as client:
        metadata = client.metadata()
        assert [tensor.shape for tensor in metadata.inputs] == [[-1, 10, 2]]
        assert metadata.platform == "onnxruntime"
        (forecast,) = client.infer({metadata.inputs[0].name: holdout.windows[::20]}).outputs.values()
    errors = forecast - holdout.targets[::20]
    assert np.sqrt((errors**2).mean()) == pytest.approx(champion.metrics["holdout_rmse"], rel=0.2)


def test_the_watch_stays_while_no_alert_fires(trained: Trained) -> None:
    assert json.loads(qoe_watch(model_name=trained.model)) == {
        "verdict": "unchanged",
        "reason": f"no alert fires for {trained.model}",
    }


def test_a_regime_change_is_learned_and_passes_the_gate(stack: RunningStack, trained: Trained) -> None:
    usual = traffic.Pool.of(Synthetic(cells=6, seed=3), WindowPlan())
    changed = traffic.Pool.of(Synthetic(cells=6, seed=3, regime_at=2000), WindowPlan())
    url = url_of(stack, trained)
    before = traffic.send(url, trained.model, usual, requests=20, windows=20)
    # Slow enough for every window to be recorded, not a sample.
    after = traffic.send(url, trained.model, changed, requests=60, windows=20, rate=ROWS_PER_SECOND / 20 / 2)
    assert before.failed == after.failed == 0
    assert before.accuracy > 0.6
    assert after.accuracy < before.accuracy / 2
    store = ObjectStore.from_settings(stack.settings)
    deadline = time.monotonic() + 60
    while len(read_labelled_window(store, trained.model)) < 1200:
        assert time.monotonic() < deadline
        time.sleep(1)
    is_over = threading.Event()

    def go_on() -> None:
        """The watch over the new version looks at live traffic."""
        while not is_over.is_set():
            traffic.send(url, trained.model, changed, requests=10, windows=10, rate=5, start=1600)

    live = threading.Thread(target=go_on)
    live.start()
    try:
        outcome = json.loads(
            qoe_retrain(
                model_name=trained.model,
                window_seconds=600.0,
                epochs=15,
                learning_rate=3e-3,
                workers=1,
                allowed_loss_on_old=0.2,
                verification_seconds=1.0,
                verification_least_requests=5,
            )
        )
    finally:
        is_over.set()
        live.join()
    assert outcome["verdict"] == "promoted", outcome
    assert Registry(stack.settings).get(trained.model, "champion").version == "2"
    again = traffic.send(url, trained.model, changed, requests=20, windows=20, start=1200)
    assert set(again.versions) == {"2"}
    assert again.accuracy > after.accuracy + 0.2


def test_constant_series_are_named_and_nothing_is_registered(stack: RunningStack, tmp_path: Path) -> None:
    """As `c2/B2` of the simulator's file, whose counter stands still."""
    cell = {
        "nrCellIdentity": "c2/B2",
        "throughput": 0,
        "prbMeasReport": {"availPrbDl": 53, "availPrbUl": 53, "measPeriodPrb": 10},
        "pdcpByteMeasReport": {"pdcpBytesUl": 2.56, "pdcpBytesDl": 2.56, "measPeriodPdcpBytes": 10},
    }
    lines = [
        json.dumps(
            {"cellMeasReport": {"measTimeStampRf": f"2021-07-02T13:09:{index // 100:02d}.{index % 100:02d}0",
                                "cellMeasReportList": [cell]}}
        )
        for index in range(1000)
    ]  # fmt: skip
    path = tmp_path / "cell.json"
    path.write_text("\n".join(lines) + "\n")
    name = unique("constant")
    output = run_workflow(
        stack,
        "--source",
        str(path),
        "--model_name",
        name,
        "--epochs",
        "1",
        "--workers",
        "1",
        "--architecture",
        "linear",
    )
    assert "is not registered: every series is constant" in output
    assert "c2/B2 pdcpBytesDl" in output
    assert '"verdict": "declined"' in output
    assert Registry(stack.settings).versions(name) == []
