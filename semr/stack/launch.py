"""Start a server so that it does not outlive the supervisor: `python launch.py SUPERVISOR_PID COMMAND...`.

Run as a file by a bare interpreter (`-I -S`), hence no import of SEMR. The kernel's parent-death signal must be asked for
between fork and exec, where Python code of a process with threads is not safe; a process of its own is.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(argv: list[str]) -> None:
    """Ask for SIGTERM at the supervisor's death (Linux), then become the command."""
    supervisor, command = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != supervisor:
        sys.exit("The supervisor ended before its server started.")
    try:
        os.execvp(command[0], command)  # noqa: S606 no shell is wanted
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
