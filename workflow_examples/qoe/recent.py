"""Ray job: what the served forecaster has seen lately, with what came, and a share of what the champion learned from before.

The result is a version of the dataset `qoe-recent`, scaled as the champion's data were, with the splits

- `train`, `validation`: the older part of the recent windows, and replayed ones (see `workflow_examples.mnist.recent`),
- `holdout`: the newest part of the recent windows, on which challenger and champion are compared,
- `holdout_old`: the champion's own holdouts.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from semr.errors import InvalidInputError
from semr.job_entry import job_main, tracked_run
from semr.monitoring.live_data import read_labelled_window
from semr.storage import DatasetVersion, ObjectStore
from workflow_examples.qoe.features import Scaling, WindowPlan, read_metadata, schema_of
from workflow_examples.qoe.prepare import EXPERIMENT

DATASET = "qoe-recent"
OLD = "holdout_old"
_SHARES = (0.6, 0.7)
# Of the cell that a recorded window belongs to nothing is known.
_LIVE_CELL = "live"
_MOST_OLD_ROWS = 20_000


@dataclass(frozen=True)
class RecentConfig:
    """What to gather.

    Attributes:
        model: registered model, whose live window is read.
        champion_dataset: dataset that the champion was trained on.
        champion_dataset_version: its version.
        window_seconds: age of the oldest request that counts as recent.
        most_rows: no more recent windows than this, the newest.
        least_rows: with fewer there is nothing to learn from.
        replay_share: share of replayed windows in the training split, 0 to below 1.
    """

    model: str
    champion_dataset: str
    champion_dataset_version: str
    window_seconds: float
    most_rows: int = 50_000
    least_rows: int = 200
    replay_share: float = 0.3


def gather(config: RecentConfig) -> None:
    """Write the dataset version and leave it in this job's MLflow run."""
    import mlflow  # noqa: PLC0415 - takes a second, and the steps import this module for its names

    from semr.tracking import DATASET_TAG  # noqa: PLC0415

    if not 0 <= config.replay_share < 1:
        raise InvalidInputError(f"replay_share must be in 0 to below 1, not {config.replay_share}.")
    store = ObjectStore.from_settings()
    old = store.dataset(config.champion_dataset, config.champion_dataset_version)
    window = read_labelled_window(store, config.model, since_seconds=config.window_seconds, max_rows=config.most_rows)
    if len(window) < config.least_rows:
        raise InvalidInputError(
            f"Only {len(window)} forecasts with known truth in the last {config.window_seconds:g} s; "
            f"{config.least_rows} are needed to learn from."
        )
    with tracked_run(EXPERIMENT, "gather recent"):
        plan, scaling = read_metadata(old.metadata)
        splits = recent_splits(window, plan, scaling)
        replayed = len(splits["train"]) * config.replay_share / (1 - config.replay_share)
        for split in ("train", "validation"):
            share = min(1.0, replayed / old.splits["train"])
            splits[split] = pa.concat_tables([splits[split], _sample(store.read(old, split), share)])
        olds = [store.read(old, split) for split in ("holdout", OLD) if split in old.splits]
        whole = pa.concat_tables(olds)
        splits[OLD] = _sample(whole, min(1.0, _MOST_OLD_ROWS / len(whole)))
        source = f"live window of {config.model}: {len(window)} forecasts, and {old.name} {old.version}"
        version = store.write_dataset(
            DATASET,
            {name: table for name, table in splits.items() if len(table)},
            source=source,
            parents=(old.version,),
        )
        mlflow.log_params(asdict(config))
        mlflow.log_metrics({f"rows_{split}": count for split, count in version.splits.items()})
        mlflow.set_tag(DATASET_TAG, version.version)
        print(f"dataset {version.name} version {version.version}: {version.splits}")


def recent_splits(window: pa.Table, plan: WindowPlan, scaling: Scaling) -> dict[str, pa.Table]:
    """The labelled window as examples, divided in the order of time."""
    window = window.sort_by([("time", "ascending"), ("prediction_id", "ascending"), ("row", "ascending")])
    inputs = window["input"].combine_chunks().flatten().to_numpy().reshape(-1, plan.steps, len(plan.columns))
    truth = np.array(window["values"].to_pylist(), np.float32).reshape(-1, len(plan.columns))
    schema = schema_of(plan, scaling)
    examples = pa.Table.from_arrays(
        [
            pa.array([_LIVE_CELL] * len(inputs)),
            window["time"].cast(pa.timestamp("us")),
            _lists(scaling.scale(inputs), schema.field("window").type),
            _lists(scaling.scale(truth), schema.field("target").type),
        ],
        schema=schema,
    )
    first, second = (round(len(inputs) * share) for share in _SHARES)
    return {
        "train": examples.slice(0, first),
        "validation": examples.slice(first, second - first),
        "holdout": examples.slice(second),
    }


def _lists(values: npt.NDArray[np.float32], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)


def _sample(table: pa.Table, share: float) -> pa.Table:
    """Evenly over the rows: the same each time."""
    rows = round(len(table) * share)
    return table.take(pa.array(np.linspace(0, len(table) - 1, rows).astype(np.int64))) if rows else table.slice(0, 0)


def check_dataset(dataset: DatasetVersion) -> None:
    """Raise `InvalidInputError` when a version has nothing to compare on."""
    missing = [split for split in ("holdout", OLD) if split not in dataset.splits]
    if missing:
        raise InvalidInputError(f"{dataset.uri} has no {' and no '.join(missing)}: gather more recent forecasts.")


if __name__ == "__main__":
    sys.exit(job_main(gather, RecentConfig))
