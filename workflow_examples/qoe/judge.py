"""Ray job: champion and challenger forecast the same windows, the gate decides by their errors, the report goes to the run."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from semr.evaluation.forecasting import MODEL
from semr.evolution.candidates import in_batches, latencies, schema, size_bytes
from semr.evolution.gate import Candidate, Check, judge
from semr.evolution.retraining import GATE_REPORT, JudgeConfig
from semr.job_entry import job_main
from semr.storage import ObjectStore
from workflow_examples.qoe import evaluate
from workflow_examples.qoe.features import read_metadata
from workflow_examples.qoe.recent import DATASET, OLD, check_dataset


def compare(config: JudgeConfig) -> None:
    """Score both on `holdout` and `holdout_old`, judge, and log report and errors."""
    import mlflow  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415

    store = ObjectStore.from_settings()
    dataset = store.dataset(DATASET, config.dataset_version)
    check_dataset(dataset)
    _, scaling = read_metadata(dataset.metadata)
    holdouts = {split: evaluate.read_split(store, dataset, split) for split in ("holdout", OLD)}
    with tracking.named_errors():
        tracking.connect()
        networks, folders, tolerances = {}, {}, {}
        for version in (config.champion_version, config.challenger_version):
            folders[version] = Path(mlflow.artifacts.download_artifacts(f"models:/{config.model}/{version}"))
            networks[version] = evaluate.load_forward(str(folders[version]))
            tolerances[version] = evaluate.tolerance_of(str(folders[version]))
        scores = {
            version: {
                split: score(in_batches(network, holdout.windows, evaluate.BATCH_ROWS), holdout.targets, scaling.std)
                for split, holdout in holdouts.items()
            }
            for version, network in networks.items()
        }
        times = latencies(networks, holdouts["holdout"].windows[:1])
        champion, challenger = (
            Candidate(
                version,
                recent=scores[version]["holdout"],
                old=scores[version][OLD],
                latency_milliseconds=times[version],
                size_bytes=size_bytes(folders[version]),
                schema=schema(folders[version]),
            )
            for version in (config.champion_version, config.challenger_version)
        )
        after = evaluate.judge(
            holdouts["holdout"], networks[config.challenger_version], tolerances[config.challenger_version]
        )
        skill = evaluate.skill_of(after)
        useful = Check("better than no model", skill.is_better, skill.reason, "better than every baseline")
        report = judge(champion, challenger, config.thresholds, further=(useful,))
        with mlflow.start_run(run_id=config.challenger_run_id):
            mlflow.log_dict(asdict(report), GATE_REPORT)
            mlflow.log_metrics({"gate_gain_recent": report.recent.gain, "gate_gain_old": report.old.gain})
            mlflow.log_metrics({**after.metrics, "better_than_baselines": float(skill.is_better)})
            for name, version in (("champion", config.champion_version), (MODEL, config.challenger_version)):
                found = evaluate.judge(holdouts["holdout"], networks[version], tolerances[version])
                mlflow.log_dict(found.to_dict(), f"gate/errors_{'challenger' if name == MODEL else name}.json")
    print(f"gate: {report.verdict}: {report.reason}")


def score(forecast: npt.NDArray[Any], targets: npt.NDArray[Any], units: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Minus the mean absolute error of each example (rows,), each column in units of its variation in training."""
    errors = np.abs(np.asarray(forecast, np.float64) - targets) / np.array(units)
    return np.asarray(-errors.mean(axis=1))


if __name__ == "__main__":
    sys.exit(job_main(compare, JudgeConfig))
