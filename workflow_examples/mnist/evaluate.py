"""Ray job: judge a run's model on the holdout split and log the verdict to the same MLflow run."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from semr.evaluation import judge_classifier
from semr.job_entry import job_main
from semr.storage import ObjectStore
from semr.training.quiet_keras import import_keras
from workflow_examples.mnist.model import to_input
from workflow_examples.mnist.prepare import DATASET


@dataclass(frozen=True)
class EvaluateConfig:
    """Which run's model to judge, and on which dataset version's holdout."""

    run_id: str
    dataset_version: str


def evaluate(config: EvaluateConfig) -> None:
    """Log accuracy, log loss, macro F1, the report by class and the confusion matrix."""
    import_keras()
    import mlflow  # noqa: PLC0415 - seconds to import; the configuration above is imported by workflow tasks too
    import mlflow.tensorflow  # noqa: PLC0415

    from semr import tracking  # noqa: PLC0415

    store = ObjectStore.from_settings()
    holdout = store.read(store.dataset(DATASET, config.dataset_version), "holdout")
    labels = holdout["label"].to_numpy().astype(np.int64)
    images = holdout["image"].combine_chunks().flatten().to_numpy()
    with tracking.named_errors():
        tracking.connect()
        model = mlflow.tensorflow.load_model(f"runs:/{config.run_id}/model")
        report = judge_classifier(model.predict(to_input(images), batch_size=256, verbose=0), labels)
        with mlflow.start_run(run_id=config.run_id):
            mlflow.log_metrics(report.metrics)
            mlflow.log_dict(report.by_class, "evaluation/report_by_class.json")
            mlflow.log_dict({"rows_true_columns_predicted": report.confusions.tolist()}, "evaluation/confusions.json")
            mlflow.log_figure(report.figure("MNIST holdout"), "evaluation/confusion_matrix.png")
    print(f"run {config.run_id}: {report.metrics}")


if __name__ == "__main__":
    sys.exit(job_main(evaluate, EvaluateConfig))
