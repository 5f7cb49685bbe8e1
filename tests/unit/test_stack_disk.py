"""Whether a disk has room, on the disk that is there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from semr.stack.disk import disk_shortage


class Usage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


@pytest.mark.parametrize(
    ("total", "free", "said"),
    [
        (250 * 10**9, 2_500_000_000, None),
        (250 * 10**9, 2_499_999_999, "disk full: 2.5 GB free, new data need 2.5 GB; what is stored stays readable"),
        (250 * 10**9, 0, "disk full: 0 MB free, new data need 2.5 GB; what is stored stays readable"),
        (4 * 10**9, 100 * 10**6, None),
        (4 * 10**9, 99 * 10**6, "disk full: 99 MB free, new data need 100 MB; what is stored stays readable"),
    ],
)
def test_a_hundredth_of_a_disk_must_be_free(
    total: int, free: int, said: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total, total - free, free))
    shortage = disk_shortage(tmp_path)
    assert (str(shortage) if shortage else None) == said


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk_shortage(tmp_path / "nowhere")
