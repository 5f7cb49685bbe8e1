"""Ray job: raw pictures to a dataset version with the splits train, validation and holdout.

Every part is read, divided and written by a task of its own on the cluster; the driver sees only the parts' descriptions.
A picture's split follows from its content alone, so that it stays in it when data are added, and no copy of a holdout picture
can be in the training data.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from semr.job_entry import job_main, join_cluster, tracked_run
from semr.storage import ObjectStore, Part

DATASET = "mnist"
EXPERIMENT = "mnist"
#: Shares of the splits; they add up to 1.
SHARES = {"train": 0.7, "validation": 0.1, "holdout": 0.2}


@dataclass(frozen=True)
class PrepareConfig:
    """Version of the dataset `mnist-raw` to prepare."""

    raw_version: str


def assign_splits(
    images: npt.NDArray[np.uint8], shares: Mapping[str, float] = MappingProxyType(SHARES)
) -> npt.NDArray[np.str_]:
    """Split of each picture of (rows, 784), from a hash of its pixels: equal pictures, equal splits."""
    digests = [int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest(), "big") / 2**64 for row in images]
    bounds = np.cumsum(list(shares.values()))[:-1]
    return np.array(list(shares))[np.searchsorted(bounds, digests, side="right")]


def prepare(config: PrepareConfig) -> None:
    """Divide the raw version, commit the result, and leave its version in this job's MLflow run."""
    import mlflow  # noqa: PLC0415 - the functions above also run in tasks, which track nothing
    import ray.data  # noqa: PLC0415

    from semr.tracking import DATASET_TAG  # noqa: PLC0415

    store = ObjectStore.from_settings()
    raw = store.dataset(f"{DATASET}-raw", config.raw_version)
    join_cluster()
    with tracked_run(EXPERIMENT, "prepare"):
        mlflow.log_params(
            {"raw_version": raw.version, "source": raw.source, **{f"share_{k}": v for k, v in SHARES.items()}}
        )
        tasks = ray.data.from_items(
            [{"path": path} for path in store.paths(raw, "all")], override_num_blocks=len(raw.parts)
        )
        rows = tasks.flat_map(_divide, fn_kwargs={"store": store}).take_all()
        parts = [Part(**row) for row in sorted(rows, key=lambda row: (row["split"], row["sha256"]))]
        version = store.commit(DATASET, parts, _schema_of(store, raw), source=raw.source, parents=(raw.version,))
        mlflow.log_metrics({f"rows_{split}": count for split, count in version.splits.items()})
        mlflow.set_tag(DATASET_TAG, version.version)
        print(f"dataset {version.name} version {version.version}: {version.splits}")


def _divide(row: dict[str, Any], store: ObjectStore) -> list[dict[str, Any]]:
    """Read one raw part, write one part for each split."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    table = pq.read_table(row["path"], filesystem=store.filesystem)
    # Sources are often sorted by class; training workers and probes take what lies together. The same order every time.
    table = table.take(np.random.default_rng(0).permutation(len(table)))
    images = table["image"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    splits = assign_splits(images)
    return [
        asdict(store.write_part(DATASET, table.filter(pa.array(splits == split)), split))
        for split in SHARES
        if (splits == split).any()
    ]


def _schema_of(store: ObjectStore, raw: Any) -> pa.Schema:  # noqa: ANN401
    import pyarrow.parquet as pq  # noqa: PLC0415

    return pq.read_schema(store.paths(raw, "all")[0], filesystem=store.filesystem)


if __name__ == "__main__":
    sys.exit(job_main(prepare, PrepareConfig))
