"""Ray job: champion and challenger answer the same pictures, the gate decides, the report goes to the challenger's run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from semr.evaluation import judge_classifier
from semr.evolution.gate import Candidate, GateThresholds, judge
from semr.job_entry import job_main
from semr.storage import ObjectStore
from semr.training.quiet_keras import import_keras
from workflow_examples.mnist.model import to_input
from workflow_examples.mnist.recent import DATASET

REPORT = "gate/report.json"
_TIMED_CALLS = 50
_BATCH = 256

# Pictures (rows, 28, 28, 1) to probabilities (rows, 10).
Forward = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True)
class JudgeConfig:
    """Who is compared on which dataset version, and what the challenger has to reach."""

    model: str
    champion_version: str
    challenger_version: str
    challenger_run_id: str
    dataset_version: str
    thresholds: GateThresholds


def compare(config: JudgeConfig) -> None:
    """Score both on `holdout` and `holdout_old`, judge, and log report and confusion matrices."""
    import_keras()
    import mlflow  # noqa: PLC0415
    import mlflow.tensorflow  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415

    store = ObjectStore.from_settings()
    dataset = store.dataset(DATASET, config.dataset_version)
    holdouts = {split: _holdout(store, dataset, split) for split in ("holdout", "holdout_old")}
    with tracking.named_errors():
        tracking.connect()
        networks, folders = {}, {}
        for version in (config.champion_version, config.challenger_version):
            folders[version] = Path(mlflow.artifacts.download_artifacts(f"models:/{config.model}/{version}"))
            networks[version] = _compiled(mlflow.tensorflow.load_model(str(folders[version])))
        scores = {version: _answers(network, holdouts) for version, network in networks.items()}
        times = _latencies(networks, holdouts["holdout"][0][:1])
        champion, challenger = (
            Candidate(
                version,
                recent=(scores[version]["holdout"].argmax(axis=1) == holdouts["holdout"][1]).astype(np.int64),
                old=(scores[version]["holdout_old"].argmax(axis=1) == holdouts["holdout_old"][1]).astype(np.int64),
                latency_milliseconds=times[version],
                size_bytes=sum(file.stat().st_size for file in folders[version].rglob("*") if file.is_file()),
                schema=_schema(folders[version]),
            )
            for version in (config.champion_version, config.challenger_version)
        )
        report = judge(champion, challenger, config.thresholds)
        with mlflow.start_run(run_id=config.challenger_run_id):
            mlflow.log_dict(asdict(report), REPORT)
            mlflow.log_metrics({"gate_gain_recent": report.recent.gain, "gate_gain_old": report.old.gain})
            for name, version in (("champion", config.champion_version), ("challenger", config.challenger_version)):
                result = judge_classifier(scores[version]["holdout"], holdouts["holdout"][1])
                title = f"{config.model} version {version} ({name}), recent holdout"
                mlflow.log_figure(result.figure(title), f"gate/confusion_matrix_{name}.png")
            after = judge_classifier(scores[config.challenger_version]["holdout"], holdouts["holdout"][1])
            mlflow.log_metrics(after.metrics)
    print(f"gate: {report.verdict}: {report.reason}")


def _holdout(store: ObjectStore, dataset: Any, split: str) -> tuple[Any, Any]:  # noqa: ANN401
    table = store.read(dataset, split)
    return to_input(table["image"].combine_chunks().flatten().to_numpy()), table["label"].to_numpy().astype(np.int64)


def _compiled(network: Any) -> Forward:  # noqa: ANN401 - Keras is imported by the job alone
    """The network as one graph for any number of pictures: Keras' own `predict` compiles one for each number."""
    import tensorflow as tf  # noqa: PLC0415

    signature = tf.TensorSpec((None, *network.input_shape[1:]), tf.float32)
    graph = tf.function(lambda batch: network(batch, training=False), input_signature=[signature])
    return lambda batch: np.asarray(graph(tf.constant(batch)))


def _answers(network: Forward, holdouts: dict[str, tuple[Any, Any]]) -> dict[str, npt.NDArray[Any]]:
    return {
        split: np.concatenate([network(inputs[start : start + _BATCH]) for start in range(0, len(inputs), _BATCH)])
        for split, (inputs, _) in holdouts.items()
    }


def _latencies(networks: dict[str, Forward], one: npt.NDArray[Any]) -> dict[str, float]:
    """Median milliseconds of a prediction for one picture, measured in turns so that both meet the same neighbours."""
    taken: dict[str, list[float]] = {version: [] for version in networks}
    for call in range(_TIMED_CALLS + 1):
        for version, network in networks.items():
            started = time.perf_counter()
            network(one)
            if call:
                taken[version].append(time.perf_counter() - started)
    return {version: float(np.median(seconds)) * 1000 for version, seconds in taken.items()}


def _schema(folder: Path) -> str:
    from mlflow.models import Model  # noqa: PLC0415

    signature = Model.load(str(folder)).signature
    return json.dumps([signature.inputs.to_dict(), signature.outputs.to_dict()])


if __name__ == "__main__":
    sys.exit(job_main(compare, JudgeConfig))
