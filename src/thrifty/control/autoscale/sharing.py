"""Several versions within one capacity: by priority first, then by what a replica does for requests.

Each version gets its fewest replicas, whatever else there is. Of what is left, versions of a higher
priority take all that they need before others get any. Among equal ones the next replica goes where it
helps most requests for what it takes: the requests a second that miss their objective without it,
over the replicas that are missing there and over the share of the scarcest resource that one takes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from thrifty.control.autoscale.types import Key, Resources

KEEP_BONUS = 2.0
"""A replica that runs is worth so much more than the same one elsewhere that has to start first:
versions that need about the same do not take turns."""
PARTS = 4
"""A version gets a part of what it misses at a time, at least one replica: with a thousand replicas
one at a time would take too long."""
_NAMES = tuple(field.name for field in fields(Resources))
_SHOWN = {"cpus": "cores", "gpus": "accelerators", "memory_bytes": "memory", "per_hour": "cost"}


@dataclass(frozen=True)
class Claim:
    """What one version wants."""

    key: Key
    fewest: int
    wanted: int
    """Within its bounds, at least `fewest`."""
    running: int
    priority: int
    need: Resources
    missed: Callable[[int], float]
    """How many requests a second miss their objective with so many replicas."""


def share_out(claims: Sequence[Claim], capacity: Resources) -> dict[Key, tuple[int, str | None]]:
    """How many replicas each version gets, and which resource keeps it from more."""
    total = {name: getattr(capacity, name) for name in _NAMES}
    free = dict(total)
    counts = {claim.key: claim.fewest for claim in claims}
    for claim in claims:
        _take(free, claim.need, claim.fewest)
    if _fits_all(free, claims):
        return {claim.key: (claim.wanted, None) for claim in claims}
    limits: dict[Key, str | None] = dict.fromkeys(counts)
    queue: list[tuple[int, float, int]] = []

    def push(index: int) -> None:
        claim = claims[index]
        have = counts[claim.key]
        if have < claim.wanted:
            worth = claim.missed(have) / (claim.wanted - have) / _weigh(claim.need, total)
            worth *= KEEP_BONUS if have < claim.running else 1.0
            heapq.heappush(queue, (-claim.priority, -worth, index))

    for index in range(len(claims)):
        push(index)
    while queue:
        index = heapq.heappop(queue)[2]
        claim = claims[index]
        fit, short = _count_fitting(free, claim.need)
        if fit < 1:
            limits[claim.key] = short
            continue
        missing = claim.wanted - counts[claim.key]
        count = min(fit, max(1, missing // PARTS))
        _take(free, claim.need, count)
        counts[claim.key] += count
        push(index)
    return {key: (count, limits[key]) for key, count in counts.items()}


def _take(free: dict[str, float], need: Resources, count: int) -> None:
    for name in _NAMES:
        one = getattr(need, name)
        if one:
            free[name] -= one * count


def _fits_all(free: dict[str, float], claims: Sequence[Claim]) -> bool:
    left = dict(free)
    for claim in claims:
        _take(left, claim.need, claim.wanted - claim.fewest)
    return all(
        left[name] >= -1e-9 or not any(_wants(claim, name) for claim in claims) for name in _NAMES
    )


def _wants(claim: Claim, name: str) -> bool:
    """Whether a version would take more of a resource."""
    return claim.wanted > claim.fewest and getattr(claim.need, name) > 0


def _count_fitting(free: dict[str, float], need: Resources) -> tuple[int, str | None]:
    """For how many replicas there is room, and which resource they take up first."""
    fit, short = 1 << 30, None
    for name in _NAMES:
        one = getattr(need, name)
        if one and free[name] < math.inf:
            room = max(0, math.floor(free[name] / one + 1e-9))
            if room < fit:
                fit, short = room, _SHOWN[name]
    return fit, short


def _weigh(need: Resources, total: dict[str, float]) -> float:
    """The share of the resource that one replica takes most of."""
    shares = [
        getattr(need, name) / total[name]
        for name in _NAMES
        if 0 < total[name] < math.inf and getattr(need, name)
    ]
    return max(shares, default=1.0)
