"""Money as whole billionths of the currency's unit ("nanos"), so that parts add up exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

NANOS = 1_000_000_000
HOUR_MS = 3_600_000


def to_nanos(amount: float) -> int:
    """An amount in the currency's unit as nanos."""
    return round(Fraction(amount) * NANOS)


def to_amount(nanos: int) -> float:
    """Nanos in the currency's unit."""
    return nanos / NANOS


def price_time(time_ms: int, price_per_hour: float) -> int:
    """What a time costs, in nanos."""
    return round(Fraction(price_per_hour) * time_ms * NANOS / HOUR_MS)


def split(total: int, weights: Sequence[float]) -> list[int]:
    """Divide `total` in proportion to `weights` (at least 0) into whole parts whose sum is `total`:
    each is rounded down, and what is left goes to the largest remainders, the first ones first.

    Without any weight above 0, `total` goes to the first part. Raises `ValueError` where there is no
    part to give it to.
    """
    if not weights:
        if total:
            raise ValueError(f"there is nobody to give {total} to")
        return []
    exact = [Fraction(weight) for weight in weights]
    whole = sum(exact)
    if whole == 0:
        return [total, *(0 for _ in exact[1:])]
    shares = [total * weight / whole for weight in exact]
    parts = [int(share) for share in shares]
    order = sorted(range(len(parts)), key=lambda place: (parts[place] - shares[place], place))
    for place in order[: total - sum(parts)]:
        parts[place] += 1
    return parts
