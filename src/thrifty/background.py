"""Work that answers no request takes less of a processor than what does, where both want it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICE = 5
"""About a third of the share of others."""


def step_back() -> None:
    """Lower the priority of the calling thread, for good; on Linux alone, where threads have one."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + _NICE)
