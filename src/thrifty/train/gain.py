"""Augmentation that is kept only where a measurement on held-out data says so.

Each candidate is measured on the same held-out items as training without it, item by item, and more
than once with other seeds. One is kept whose gain is above zero with 95% confidence, all candidates
together (the level of each is divided by their number, Bonferroni); of several the one with the
greatest gain. The interval holds both what items and what repetitions differ by. What trains and
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
    measure: Callable[[Augmentation | None, int], Sequence[float]],
    *,
    repeats: int = 1,
    level: float = LEVEL,
) -> Choice[Augmentation]:
    """Measure training without augmentation (None) and with each candidate; keep the best that
    gains.

    `measure` trains with the seed of a repetition, counted from 0, and returns a score of each
    held-out item, higher being better, the same items in the same order each time. Items should be
    independent of each other: one a conversation. Raises `DataError` where they are too few, or
    others than before.
    """
    plain = np.array([_measure(measure, None, repeat) for repeat in range(repeats)])
    items = plain.shape[1]
    if items < LEAST_ITEMS:
        raise DataError(
            f"{items} held-out items cannot tell whether augmentation gains; it takes at least "
            f"{LEAST_ITEMS}: hold out more ('split.test' of a recipe, or --held-out)"
        )
    z = NormalDist().inv_cdf(1 - level / (2 * max(1, len(candidates))))
    trials = []
    for name, candidate in candidates.items():
        scores = [_measure(measure, candidate, repeat) for repeat in range(repeats)]
        if any(one.shape != (items,) for one in scores):
            raise DataError(f"{name} was measured on {len(scores[0])} items, not on the {items}")
        changes = np.array(scores) - plain
        change = changes.mean(axis=0)
        variance = float(change.var(ddof=1)) / items
        if repeats > 1:
            variance += float(changes.mean(axis=1).var(ddof=1)) / repeats
        gain, half = float(change.mean()), z * math.sqrt(variance)
        trials.append(Trial(name, gain, gain - half, gain + half, items))
    best = max((one for one in trials if one.low > 0), key=lambda one: one.gain, default=None)
    return Choice(
        None if best is None else best.name,
        None if best is None else candidates[best.name],
        tuple(Trial(**{**asdict(one), "kept": one is best}) for one in trials),
    )


def _measure(
    measure: Callable[[Augmentation | None, int], Sequence[float]],
    candidate: Augmentation | None,
    repeat: int,
) -> np.ndarray[Any, Any]:
    return np.asarray(measure(candidate, repeat), np.float64)
