"""`ends_with_parent.py PARENT_PID COMMAND...`: become the command, and be killed when the parent dies.

As `semr/stack/launch.py`, but by SIGKILL: an API server that loses etcd at the same moment never ends by SIGTERM, and nothing
that these servers hold is needed again.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("The test bed ended before its server started.")
    os.execv(sys.argv[2], sys.argv[2:])
