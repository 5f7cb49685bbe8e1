from __future__ import annotations

import threading
import time
from pathlib import Path

from semr.stack.log_files import follow, limit_size, tail


def test_tail_gives_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(10)))
    assert tail(path, 2) == ["line 8", "line 9"]
    assert tail(path, 0) == []
    assert tail(tmp_path / "none", 5) == []


def test_tail_survives_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff\xfe\n")
    assert len(tail(path, 5)) == 1


def test_large_log_is_moved_while_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        limit_size(path, largest=100)
        assert path.stat().st_size == 100
        writer.write(b"y")
        limit_size(path, largest=100)
        writer.write(b"after\n")
    assert path.read_bytes() == b"after\n"
    assert (tmp_path / "log.1").stat().st_size == 101
    limit_size(tmp_path / "none", largest=100)


def test_follow_gives_new_lines_also_after_the_log_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\nlast\n")
    lines = follow(path, 1)
    assert next(lines) == "last"

    def write() -> None:
        time.sleep(0.5)
        with path.open("a") as file:
            file.write("new\nhalf")
        time.sleep(0.8)
        path.write_text("cut\n")

    thread = threading.Thread(target=write)
    thread.start()
    assert next(lines) == "new"
    assert next(lines).endswith("cut")
    thread.join()
