"""Ray job: champion and challenger answer the same pictures, the gate decides, the report goes to the challenger's run."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from semr.evaluation import judge_classifier
from semr.evolution.candidates import Forward, in_batches, latencies, schema, size_bytes
from semr.evolution.gate import Candidate, judge
from semr.evolution.retraining import GATE_REPORT, JudgeConfig
from semr.job_entry import job_main
from semr.storage import ObjectStore
from semr.training.quiet_keras import import_keras
from workflow_examples.mnist.model import to_input
from workflow_examples.mnist.recent import DATASET

_BATCH = 256


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
        scores = {
            version: {split: in_batches(network, inputs, _BATCH) for split, (inputs, _) in holdouts.items()}
            for version, network in networks.items()
        }
        times = latencies(networks, holdouts["holdout"][0][:1])
        champion, challenger = (
            Candidate(
                version,
                recent=(scores[version]["holdout"].argmax(axis=1) == holdouts["holdout"][1]).astype(np.int64),
                old=(scores[version]["holdout_old"].argmax(axis=1) == holdouts["holdout_old"][1]).astype(np.int64),
                latency_milliseconds=times[version],
                size_bytes=size_bytes(folders[version]),
                schema=schema(folders[version]),
            )
            for version in (config.champion_version, config.challenger_version)
        )
        report = judge(champion, challenger, config.thresholds)
        with mlflow.start_run(run_id=config.challenger_run_id):
            mlflow.log_dict(asdict(report), GATE_REPORT)
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


if __name__ == "__main__":
    sys.exit(job_main(compare, JudgeConfig))
