"""Log files of the services: bounded size, last lines, following."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

LARGEST_BYTES = 20_000_000
_FOLLOW_S = 0.3


def limit_size(path: Path, largest: int = LARGEST_BYTES) -> None:
    """Move the content of a log that grew over `largest` bytes to `<name>.1`; its writer, which appends, goes on in `path`."""
    try:
        if path.stat().st_size <= largest:
            return
    except FileNotFoundError:
        return
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of `path` without line ends; none when there is no such file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=lines)]
    except FileNotFoundError:
        return []


def follow(path: Path, lines: int) -> Iterator[str]:
    """The last `lines` lines of `path`, then every new one, without line ends and without an end."""
    yield from tail(path, lines)
    position = path.stat().st_size if path.exists() else 0
    rest = ""
    while True:
        time.sleep(_FOLLOW_S)
        size = path.stat().st_size if path.exists() else 0
        if size < position:  # the log was cut
            position = 0
        if size == position:
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            file.seek(position)
            text = rest + file.read()
            position = file.tell()
        *complete, rest = text.split("\n")
        yield from complete
