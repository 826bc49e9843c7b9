"""Which bytes of stored models are in the page cache of this machine, and bringing them there.

Linux alone tells (`mincore`). Elsewhere files are read anew each time, and nothing is known of
them.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Cached:
    """How much of some files is in the page cache."""

    cached_bytes: int
    size_bytes: int

    @property
    def share(self) -> float:
        """From 0 to 1; 1 where there is nothing to have."""
        return self.cached_bytes / self.size_bytes if self.size_bytes else 1.0


def measure_cached(files: Iterable[Path]) -> Cached | None:
    """How much of `files` is in the page cache, in whole pages; None where the system does not
    tell. Raises `OSError`.
    """
    if not sys.platform.startswith("linux"):
        return None
    cached = size = 0
    for path in files:
        there, whole = _measure_file(path)
        cached, size = cached + there, size + whole
    return Cached(cached, size)


def bring_into_cache(files: Iterable[Path]) -> None:
    """Read the files that are not whole in the page cache. Blocks. Raises `OSError`."""
    buffer = bytearray(_CHUNK)
    for path in files:
        found = measure_cached([path])
        if found is not None and found.share >= 1.0:
            continue
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _measure_file(path: Path) -> tuple[int, int]:
    size = path.stat().st_size
    if not size:
        return 0, 0
    pages = -(-size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    # Private and writable, so that its address can be had; nothing is written.
    with (
        path.open("rb") as file,
        mmap.mmap(
            file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        ) as view,
    ):
        first = ctypes.c_char.from_buffer(view)
        failed = _libc().mincore(ctypes.c_void_p(ctypes.addressof(first)), size, found)
        fault = ctypes.get_errno()
        del first  # the view cannot be closed before
    if failed:
        raise OSError(fault, f"mincore fails for {path}")
    there = sum(page & 1 for page in found)
    return min(there * mmap.PAGESIZE, size), size


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.mincore.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_ubyte),
    ]  # fmt: skip
    return library
