"""Which cores each replica gets, so that they do not fight over them."""

from __future__ import annotations

from collections.abc import Sequence


def share_cores(cores: Sequence[int], copies: int, wanted: int | None = None) -> list[list[int]]:
    """A list of cores for each copy: `wanted` of them, or an even share.

    Neighbouring cores stay together, because they share caches. Where there are fewer cores than
    are wanted in all, copies share cores as evenly as can be.
    """
    if wanted is None and copies <= len(cores):
        base, more = divmod(len(cores), copies)
        shares, start = [], 0
        for index in range(copies):
            size = base + (1 if index < more else 0)
            shares.append(list(cores[start : start + size]))
            start += size
        return shares
    size = min(wanted or 1, len(cores))
    return [
        sorted(cores[(index * size + offset) % len(cores)] for offset in range(size))
        for index in range(copies)
    ]
