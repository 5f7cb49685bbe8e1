"""Ray job: what the served model has seen lately, with its labels, and a share of what the champion learned from before.

The result is a version of the dataset `mnist-recent` with the splits

- `train`, `validation`: recent pictures and replayed ones, so that the challenger learns the new without forgetting the old
  (experience replay; Rolnick et al., "Experience Replay for Continual Learning", NeurIPS 2019),
- `holdout`: recent pictures that are in neither, on which challenger and champion are compared,
- `holdout_old`: the champion's own holdouts.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semr.errors import InvalidInputError
from semr.job_entry import job_main, tracked_run
from semr.monitoring.live_data import read_labelled_window
from semr.storage import DatasetVersion, ObjectStore, Part
from workflow_examples.mnist.prepare import EXPERIMENT, assign_splits

DATASET = "mnist-recent"
SHARES = {"train": 0.6, "validation": 0.1, "holdout": 0.3}
_OLD = "holdout_old"
# Reading and writing parts is waiting for the object store; tasks on the cluster would take longer to start.
_READERS = 4


@dataclass(frozen=True)
class RecentConfig:
    """What to gather.

    Attributes:
        model: registered model, whose live window is read.
        champion_dataset: dataset that the champion was trained on.
        champion_dataset_version: its version.
        window_seconds: age of the oldest picture that counts as recent.
        most_rows: no more recent pictures than this, the newest first.
        least_rows: with fewer there is nothing to learn from.
        replay_share: share of replayed pictures in the training split, 0 to below 1.
    """

    model: str
    champion_dataset: str
    champion_dataset_version: str
    window_seconds: float
    most_rows: int = 20_000
    least_rows: int = 200
    replay_share: float = 0.5


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
            f"Only {len(window)} labelled pictures in the last {config.window_seconds:g} s; "
            f"{config.least_rows} are needed to learn from."
        )
    with tracked_run(EXPERIMENT, "gather recent"):
        recent = _recent_splits(window)
        parts = [store.write_part(DATASET, table, split) for split, table in recent.items() if len(table)]
        parts += _from_before(store, old, config.replay_share, len(recent["train"]))
        source = f"live window of {config.model}: {len(window)} pictures, and {old.name} {old.version}"
        version = store.commit(DATASET, parts, recent["train"].schema, source=source, parents=(old.version,))
        mlflow.log_params(asdict(config))
        mlflow.log_metrics({f"rows_{split}": count for split, count in version.splits.items()})
        mlflow.set_tag(DATASET_TAG, version.version)
        print(f"dataset {version.name} version {version.version}: {version.splits}")


def _recent_splits(window: pa.Table) -> dict[str, pa.Table]:
    inputs = window["input"].combine_chunks().flatten().to_numpy().reshape(len(window), -1)
    images = np.rint(inputs * 255).astype(np.uint8)
    labels = window["label"].to_numpy().astype(np.int8)
    splits = assign_splits(images, SHARES)
    return {split: _table(images[splits == split], labels[splits == split]) for split in SHARES}


def _table(images: Any, labels: Any) -> pa.Table:  # noqa: ANN401 - arrays (rows, 784) uint8 and (rows,) int8
    column = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), images.shape[1])
    return pa.table({"image": column, "label": pa.array(labels)})


def _from_before(store: ObjectStore, old: DatasetVersion, share: float, recent_rows: int) -> list[Part]:
    """A share of the champion's training and validation pictures, and all of its holdouts, one part at a time a thread."""
    replayed = min(1.0, recent_rows * share / (1 - share) / old.splits["train"])
    fates = {
        "train": ("train", replayed),
        "validation": ("validation", replayed),
        "holdout": (_OLD, 1.0),
        _OLD: (_OLD, 1.0),
    }
    work = [
        (path, split, fraction)
        for before, (split, fraction) in fates.items()
        if before in old.splits and fraction > 0
        for path in store.paths(old, before)
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        parts = pool.map(lambda each: _sample(store, *each), work)
        return sorted((part for part in parts if part), key=lambda part: (part.split, part.sha256))


def _sample(store: ObjectStore, path: str, split: str, fraction: float) -> Part | None:
    """A share of one part's pictures as a new part, None when the share is empty."""
    with store.connection.named_errors():
        table = pq.read_table(path, filesystem=store.filesystem)
    # Drawn by the part's size alone: the same pictures each time, so that the same window gives the same version.
    rng = np.random.default_rng(len(table))
    chosen = np.flatnonzero(rng.random(len(table)) < fraction)
    if not len(chosen):
        return None
    images = table["image"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    sample = _table(images[chosen], table["label"].to_numpy()[chosen].astype(np.int8))
    return store.write_part(DATASET, sample, split)


if __name__ == "__main__":
    sys.exit(job_main(gather, RecentConfig))
