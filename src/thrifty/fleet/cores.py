"""Which cores each replica gets, so that they do not fight over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def choose_cores(cores: Sequence[int], used: Mapping[int, int], size: int) -> list[int]:
    """The cores for one copy more: `size` of them (at most all), those that the fewest copies use.

    Neighbouring cores stay together, because they share caches. `used` says how many copies run on
    each core.
    """
    size = max(1, min(size, len(cores)))
    windows = [
        [cores[(start + offset) % len(cores)] for offset in range(size)]
        for start in range(len(cores))
    ]
    # The emptiest window; among equals one in a single piece, then the first.
    best = min(
        range(len(windows)),
        key=lambda start: (
            sum(used.get(core, 0) for core in windows[start]),
            start + size > len(cores),
            start,
        ),
    )
    return sorted(windows[best])


def share_evenly(cores: int, copies: int) -> tuple[int, int]:
    """How many of so many cores each of `copies` gets, at least one, and how many copies get one
    more.
    """
    if copies <= 0 or copies >= cores:
        return max(1, cores // max(1, copies)), 0
    return divmod(cores, copies)
