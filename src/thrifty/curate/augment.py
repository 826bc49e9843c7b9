"""Augmentation that is kept only where a measurement on held-out data says so.

Each candidate is measured on the same held-out items as training without it, item by item. One is
kept whose gain is above zero with 95% confidence, all candidates together (the level of each is
divided by their number, Bonferroni); of several the one with the greatest gain. What trains and
measures is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Generic, TypeVar

import numpy as np

from thrifty.errors import DataError

Augmentation = TypeVar("Augmentation")
LEAST_ITEMS = 30
"""Fewer items cannot tell: the interval rests on their mean being nearly normal."""
LEVEL = 0.05


@dataclass(frozen=True)
class Trial:
    """What one candidate gained on held-out items, with an interval for all candidates together."""

    name: str
    gain: float
    low: float
    high: float
    items: int
    kept: bool = False


@dataclass(frozen=True)
class Choice(Generic[Augmentation]):
    """The augmentation that is kept, and every trial."""

    name: str | None
    """None: nothing gains, so all are dropped."""
    augmentation: Augmentation | None
    trials: tuple[Trial, ...]

    def as_dict(self) -> dict[str, Any]:
        """For records and lineages."""
        return {"kept": self.name, "trials": [asdict(trial) for trial in self.trials]}


def keep_what_gains(
    candidates: Mapping[str, Augmentation],
    measure: Callable[[Augmentation | None], Sequence[float]],
    *,
    level: float = LEVEL,
) -> Choice[Augmentation]:
    """Measure training without augmentation (None) and with each candidate; keep the best that
    gains.

    `measure` trains and returns a score of each held-out item, higher being better, the same items
    in the same order each time. Items should be independent of each other: one a conversation.
    Raises `DataError` where they are too few, or others than before.
    """
    plain = np.asarray(measure(None), np.float64)
    if len(plain) < LEAST_ITEMS:
        raise DataError(
            f"{len(plain)} held-out items cannot tell whether augmentation gains; it takes at least "
            f"{LEAST_ITEMS}: hold out more ('split.test' of the recipe)"
        )
    z = NormalDist().inv_cdf(1 - level / (2 * max(1, len(candidates))))
    trials = []
    for name, candidate in candidates.items():
        scores = np.asarray(measure(candidate), np.float64)
        if scores.shape != plain.shape:
            raise DataError(f"{name} was measured on {len(scores)} items, not on the {len(plain)}")
        change = scores - plain
        half = z * float(change.std(ddof=1)) / math.sqrt(len(change))
        gain = float(change.mean())
        trials.append(Trial(name, gain, gain - half, gain + half, len(change)))
    best = max((one for one in trials if one.low > 0), key=lambda one: one.gain, default=None)
    return Choice(
        None if best is None else best.name,
        None if best is None else candidates[best.name],
        tuple(Trial(**{**asdict(one), "kept": one is best}) for one in trials),
    )
