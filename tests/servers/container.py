"""Three programs, with nothing but Python's own library and Linux' namespaces:

`container.py hold` brings up the loopback device of the network namespace that it was started in, says so in a line, and stays
until its standard input ends.

`container.py forward SOCKET PORT` passes connections of a Unix socket, which is in no network namespace, on to a port of its
own.

`container.py run SPECIFICATION` runs the command of a container as a kubelet would start it: process 1 of its own namespace,
on whose end all others end; a root of its own that is read-only but for the given mounts; an ordinary user without any
capability; no new privileges. The files are this machine's, there is no image. SPECIFICATION is a JSON file: see
`Specification` of pod_runner.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)

# linux/mount.h, linux/sched.h, linux/prctl.h, linux/sockios.h, linux/if.h
_MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 0x1000, 0x2000, 0x4000, 0x40000
_MOUNT_ATTR_RDONLY, _AT_RECURSIVE, _AT_FDCWD, _SYS_MOUNT_SETATTR = 0x1, 0x8000, -100, 442
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
#: Folders that stay as they are: devices and the kernel's own.
_KERNEL = ("dev", "proc", "sys")


def _call(name: str, *arguments: Any) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")


def _bind(source: Path, target: Path) -> None:
    _call("mount", os.fsencode(source), os.fsencode(target), None, _MS_BIND | _MS_REC, None)


def _make_read_only(target: Path, what: int = _AT_RECURSIVE) -> None:
    # The same number on every architecture that has it; a remount would not reach what is mounted below.
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    path = ctypes.c_char_p(os.fsencode(target))
    _call("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, path, what, attributes, ctypes.c_size_t(len(attributes)))


def _mirror(source: Path, target: Path) -> None:
    """At `target`, an empty file system with everything of the folder `source` in it, to which names can be added."""
    # Held open, for the mount hides it where both are the same.
    held = os.open(source, os.O_PATH)
    _call("mount", b"tmpfs", os.fsencode(target), b"tmpfs", 0, b"mode=755")
    for entry in sorted(Path(f"/proc/self/fd/{held}").iterdir()):
        place = target / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.is_dir():
            place.mkdir()
            _bind(entry, place)
        elif entry.is_file():
            place.touch()
            _bind(entry, place)
    os.close(held)


def _make_place(root: Path, target: Path, folder: bool) -> Path:
    """The place for a mount at `target` below `root`, made where the machine has none."""
    place = root
    for part in target.parts[1:]:
        parent, place = place, place / part
        if place.is_symlink():
            raise OSError(f"{target} leads through a symbolic link of this machine: {place.relative_to(root)}")
        if not place.exists():
            if parent.stat().st_dev != root.stat().st_dev:
                _mirror(parent, parent)
            place.mkdir()
    if not folder and place.is_dir():
        place.rmdir()
        place.touch()
    return place


def _below(target: Path, others: list[Path]) -> bool:
    return any(other in target.parents for other in others)


def _enter_root(specification: dict[str, Any]) -> None:
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    root = Path(specification["root"])
    _mirror(Path("/"), root)
    # The one that was mounted shows processes by other numbers than they have here.
    _call("mount", b"proc", os.fsencode(root / "proc"), b"proc", 0, None)
    mounts = sorted((Path(each["target"]), Path(each["source"]), each["read_only"]) for each in specification["mounts"])
    targets = [target for target, _, _ in mounts]
    # Sources are held open: a mount may hide them.
    sources = {target: os.open(source, os.O_PATH) for target, source, _ in mounts}
    for target, source, _ in mounts:
        if not _below(target, targets):
            _make_place(root, target, source.is_dir())
    # Read-only before that comes in which may be written.
    for entry in sorted(root.iterdir()):
        if entry.name not in _KERNEL and not entry.is_symlink() and entry.is_mount():
            _make_read_only(entry)
    _make_read_only(root, 0)
    for target, source, read_only in mounts:
        place = root / target.relative_to("/")
        if _below(target, targets):
            place.mkdir(parents=True, exist_ok=True) if source.is_dir() else place.touch()
        _bind(Path(f"/proc/self/fd/{sources[target]}"), place)
        if read_only:
            _make_read_only(place)
    # Not just chroot: it forbids namespaces of users.
    os.chdir(root)
    _call("mount", b".", b"/", None, _MS_MOVE, None)
    os.chroot(".")
    os.chdir(specification["working_folder"])


def _become(user: int) -> None:
    _call("unshare", _CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} 0 1")
    Path("/proc/self/gid_map").write_text(f"{user} 0 1")
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def run(specification: dict[str, Any]) -> int:
    """Run the command to its end; its exit code, 128 and the signal's number for one that was killed."""
    parent = os.getppid()
    _die_with_parent()
    if os.getppid() != parent:
        sys.exit("The tests ended before their container started.")
    _call("unshare", _CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        _enter_root(specification)
        _become(specification["user"])
        # After the change of the user, which takes it back.
        _die_with_parent()
        # Without capabilities: an exec of a user who is not root drops them.
        os.execvpe(specification["command"][0], specification["command"], specification["environment"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def hold() -> None:
    """Bring up the loopback device and wait."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        asked = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(device, _SIOCGIFFLAGS, asked), 16)
        fcntl.ioctl(device, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
    print("ready", flush=True)
    sys.stdin.read()


def forward(path: str, port: int) -> None:
    """Pass on connections until killed."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        print("ready", flush=True)
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection(("127.0.0.1", port), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            join(near, far)


def join(one: socket.socket, other: socket.socket) -> None:
    """What comes out of each goes into the other, until both have ended."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def both() -> None:
        with one, other:
            back = threading.Thread(target=pump, args=(other, one), daemon=True)
            back.start()
            pump(one, other)
            back.join()

    threading.Thread(target=both, daemon=True).start()


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "hold":
        hold()
    elif what == "forward":
        forward(arguments[0], int(arguments[1]))
    else:
        sys.exit(run(json.loads(Path(arguments[0]).read_text())))


if __name__ == "__main__":
    main()
