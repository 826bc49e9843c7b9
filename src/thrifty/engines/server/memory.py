"""Gives memory back to the system while nobody asks.

- What the heap has free is returned.
- Pages of files that are mapped and shared, such as a model's weights, leave this process. They
  stay in the page cache as long as nobody else needs the memory.
- All other pages go to swap, if there is any. Without swap they stay, and with them the weights of
  an engine that has repacked them, and what is in its KV cache.

Nothing is lost, and nothing has to be undone: pages come back when they are used.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

MADV_DONTNEED = 4
MADV_PAGEOUT = 21
"""From Linux's `mman-common.h`; kernels before 5.4 refuse it, which does no harm."""
_MAPS = "/proc/self/maps"


def give_back_memory() -> None:
    """Give back what this process can do without. Blocks, for as long as writing to swap takes;
    does nothing where the system has no such calls.
    """
    gc.collect()
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with contextlib.suppress(OSError):
        for start, end, advice in list(_find_mappings()):
            libc.madvise(start, end - start, advice)


def _find_mappings() -> Iterator[tuple[int, int, int]]:
    """Where this process's mappings begin and end, and what may be done with each."""
    with open(_MAPS) as file:
        for line in file:
            addresses, permissions, _, _, inode, *_ = line.split()
            start, _, end = addresses.partition("-")
            if permissions == "r--s":
                yield int(start, 16), int(end, 16), MADV_DONTNEED
            elif inode == "0" and permissions.startswith("rw-p"):
                yield int(start, 16), int(end, 16), MADV_PAGEOUT
