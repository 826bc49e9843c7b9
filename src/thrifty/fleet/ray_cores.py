"""Which cores of a node a replica on Ray gets. Ray counts cores and keeps nobody off them, so replicas
of one node agree through locks on files, which end with their holders.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def take_cores(folder: Path, count: int) -> list[int]:
    """So many cores of this machine that no other replica holds, for as long as this process lives;
    empty where there are not enough, so that it may run on any. `folder` is this machine's alone.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held: dict[int, int] = {}
    for core in sorted(os.sched_getaffinity(0)):
        descriptor = os.open(folder / str(core), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        held[core] = descriptor
        if len(held) == count:
            return sorted(held)
    for descriptor in held.values():
        os.close(descriptor)
    return []
