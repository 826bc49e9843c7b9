"""Runs a command, and ends it and all it started when whoever asked for it is gone.

    python -m thrifty.engines.vllm.guard FD FOLDER COMMAND ...

FD is one end of a pipe or socket whose other end the asking process holds: when that closes, on
purpose or because the process was killed, the command is told to end, and what is left of it after
`GRACE_S` is killed. FOLDER is removed at the end. vLLM starts processes that outlive its server
when that is killed; here nothing does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import FrameType

import psutil

GRACE_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Run the command to its end; returns its exit status, 128 and the signal's number if one
    ended it.
    """
    watched, folder, *command = arguments
    _adopt_orphans()
    # Told to end with its group, it still sees to the others.
    signal.signal(signal.SIGTERM, _ignore)
    signal.signal(signal.SIGINT, _ignore)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=True)
    watcher = threading.Thread(target=_watch, args=(int(watched), child), daemon=True)
    watcher.start()
    status = child.wait()
    _kill_rest()
    shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _watch(watched: int, child: subprocess.Popen[bytes]) -> None:
    """Wait for the end of the other side, then end the command."""
    with contextlib.suppress(OSError):
        while os.read(watched, 64):
            pass
    child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()


def _kill_rest() -> None:
    """Kill every process that the command left."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _adopt_orphans() -> None:
    """Become the parent of processes whose own parent ends, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Handle a signal by doing nothing. The command does not inherit this."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
