"""Becomes another program that ends when the process that started it does, however that ends.

    python -m thrifty.fleet.owned_child PARENT COMMAND...

A process in a session of its own outlives a parent that is killed. The kernel's parent-death signal
prevents that, and it is kept when the program changes. It is tied to the thread that started this
process, so that thread must last.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def make_owned(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` for as long as the calling process lives."""
    return [sys.executable, "-m", "thrifty.fleet.owned_child", str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> None:
    """Ask for the signal, then become the command. Returns only by raising."""
    parent, *command = arguments
    if sys.platform != "linux":
        sys.exit("Error: processes that end with their parent need Linux")
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"Error: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("Error: the process that started this one has ended")
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
