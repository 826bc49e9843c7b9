"""One error budget for several metrics that are tested at once (Bonferroni)."""

from __future__ import annotations

from collections.abc import Sequence

PRIMARY_SHARE = 0.5


def split_budget(alpha: float, primary: str, guards: Sequence[str]) -> dict[str, float]:
    """The level of each metric: half for the primary one, the rest in equal parts for its guards. The
    chance that any of the tests errs is then at most `alpha`, however they depend on each other.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and below 1")
    if primary in guards or len(set(guards)) != len(guards):
        raise ValueError("each metric is named once")
    if not guards:
        return {primary: alpha}
    rest = alpha * (1 - PRIMARY_SHARE) / len(guards)
    return {primary: alpha * PRIMARY_SHARE, **dict.fromkeys(guards, rest)}
