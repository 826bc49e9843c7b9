"""A function's limits: memory, and its share of a processor, by control groups of its own.

Lambda gives 1769 MiB one core, and of more cores in proportion. Control groups do the same: the
kernel counts the processes' memory and stops them for the rest of each tenth of a second once they
used their share of it. Where groups cannot be made, processes are held to whole cores, rounded down,
and memory is not limited; `how` says which.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MIB_PER_CPU = 1769
_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


@dataclass(frozen=True)
class Box:
    """A function's limits."""

    memory_mib: int
    how: str
    enter: Callable[[], None]
    """Called in a process that is about to become the function (`preexec_fn`)."""
    peak_bytes: Callable[[], int | None]
    """The most memory that was used; None where it is not counted."""

    @property
    def vcpus(self) -> float:
        return self.memory_mib / MIB_PER_CPU


@contextlib.contextmanager
def function_limits(memory_mib: int) -> Iterator[Box]:
    """The limits of a function with so much memory. All its processes must have ended after."""
    vcpus = memory_mib / MIB_PER_CPU
    cores = sorted(os.sched_getaffinity(0))
    folders = [_ROOT / kind / f"thrifty-lambda-{os.getpid()}" for kind in ("cpu", "memory")]
    made: list[Path] = []
    try:
        for folder in folders:
            folder.mkdir()
            made.append(folder)
        (folders[0] / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (folders[0] / "cpu.cfs_quota_us").write_text(str(round(vcpus * _PERIOD_US)))
        (folders[1] / "memory.limit_in_bytes").write_text(str(memory_mib << 20))
    except OSError:
        for folder in made:
            folder.rmdir()
        kept = set(cores[: max(1, int(vcpus))])
        yield Box(
            memory_mib,
            f"{len(kept)} whole cores, memory not limited",
            lambda: os.sched_setaffinity(0, kept),
            lambda: None,
        )
        return

    def enter() -> None:
        for folder in folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes() -> int | None:
        return int((folders[1] / "memory.max_usage_in_bytes").read_text())

    what = f"control groups: {memory_mib} MiB, {vcpus:.2f} of {len(cores)} cores"
    try:
        yield Box(memory_mib, what, enter, peak_bytes)
    finally:
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def drop_from_page_cache(root: Path) -> None:
    """So that files are read from the disk the next time."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
