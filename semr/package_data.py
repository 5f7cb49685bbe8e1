"""Files that come with SEMR and are no Python: a chart, rules.

A checkout has them where people look for them, a wheel carries copies. A Flyte task may find neither beside its code: where
workflows are registered from a checkout, the modules of this package travel with them, without anything else, and hide those
of the image. The files of the image are there all the same.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import semr
from semr.errors import SemrError


class MissingFileError(SemrError):
    """SEMR is installed without a file that it needs."""


def package_data(packaged: str, checkout: str) -> Path:
    """A file or folder that comes with SEMR.

    Args:
        packaged: its path in the package, such as `charts/SEMR_inference`.
        checkout: its path in a checkout.

    Raises:
        MissingFileError: it is nowhere.
    """
    package = Path(semr.__file__).parent
    candidates = [package.parent / checkout, package / packaged]
    with suppress(PackageNotFoundError):
        candidates.append(Path(str(distribution("semr").locate_file(f"semr/{packaged}"))))
    for path in candidates:
        if path.exists():
            return path
    places = ", ".join(str(path) for path in candidates)
    raise MissingFileError(f"SEMR is installed without {packaged} (looked for {places}): install the package again.")
