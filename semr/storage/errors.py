"""Errors of the object store that a caller may want to tell apart."""

from semr.errors import InvalidInputError, SemrError


class DatasetNotFoundError(InvalidInputError):
    """The dataset, version or split that was asked for does not exist in the object store."""


class CorruptDatasetError(SemrError):
    """What the object store holds is not what the manifest of the version promises."""
