"""Dataset versions in the object store: Parquet parts plus a manifest, content-addressed and committed in one step."""

from semr.storage.errors import CorruptDatasetError, DatasetNotFoundError
from semr.storage.manifest import DatasetVersion, Part
from semr.storage.store import LATEST, ROWS_PER_PART, ObjectStore

__all__ = [
    "LATEST",
    "ROWS_PER_PART",
    "CorruptDatasetError",
    "DatasetNotFoundError",
    "DatasetVersion",
    "ObjectStore",
    "Part",
]
