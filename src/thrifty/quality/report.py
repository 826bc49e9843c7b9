"""What canary questions say of each version: how many answers are right now, and what has changed.

The same questions are asked again and again, so answers of one version to one question are no new
evidence. Each question counts once: in the share that is right, by its newest answer; in the test of
change, by the first time at which its answer is another than at first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from thrifty.db.quality import QualityAnswer
from thrifty.statistics import betting_interval, excess_evidence

ALPHA = 0.05
"""Of the interval."""
CHANGE_ALPHA = 0.01
"""The chance that a version whose answers change in both directions alike is said to be worse."""
WORSE, BETTER, SAME = "worse", "better", "no change shown"


@dataclass(frozen=True)
class VersionQuality:
    """One version's answers to one series of questions."""

    deployment: str
    version: str
    revision: str
    questions: str
    asked: int
    """Questions with an answer."""
    rounds: int
    right: int
    share: float | None
    low: float
    high: float
    """The ends of a confidence sequence for the share of such questions that it answers rightly."""
    lost: int
    """Questions that were right at first and became wrong."""
    gained: int
    change: str
    faults: dict[str, int]
    """Faults of the newest answers, by kind."""
    first_s: float
    last_s: float
    failed: str
    """Why the newest question got no answer; empty: it did."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return asdict(self)


def summarize(answers: Iterable[QualityAnswer]) -> list[VersionQuality]:
    """Each version by revision and series of questions, the newest of them last."""
    series: dict[tuple[str, str, str, str], list[QualityAnswer]] = {}
    for one in answers:
        key = (one.deployment, one.version, one.revision, one.questions)
        series.setdefault(key, []).append(one)
    return [_summarize_one(key, rows) for key, rows in series.items()]


def _summarize_one(key: tuple[str, str, str, str], rows: Sequence[QualityAnswer]) -> VersionQuality:
    first: dict[int, bool] = {}
    latest: dict[int, QualityAnswer] = {}
    changed: dict[int, bool] = {}
    for row in rows:
        if row.right is None:
            continue
        before = first.setdefault(row.question, row.right)
        if row.right != before:
            changed.setdefault(row.question, row.right)
        latest[row.question] = row
    values = np.array([float(bool(latest[place].right)) for place in sorted(latest)])
    low, high = 0.0, 1.0
    if len(values):
        lows, highs = betting_interval(values, ALPHA)
        low, high = float(lows[-1]), float(highs[-1])
    lost = sum(not right for right in changed.values())
    gained = len(changed) - lost
    faults: dict[str, int] = {}
    for row in latest.values():
        for kind in row.faults.split(", ") if row.faults else ():
            faults[kind] = faults.get(kind, 0) + 1
    right = int(values.sum())
    return VersionQuality(
        *key, asked=len(values), rounds=sum(row.question == 0 for row in rows), right=right,
        share=right / len(values) if len(values) else None, low=low, high=high, lost=lost,
        gained=gained, change=_judge(lost, gained), faults=faults, first_s=rows[0].at_s,
        last_s=rows[-1].at_s, failed=rows[-1].faults if rows[-1].right is None else "",
    )  # fmt: skip


def _judge(lost: int, gained: int) -> str:
    bar = math.log(1 / CHANGE_ALPHA)
    if float(excess_evidence(lost, lost + gained, 0.5)) >= bar:
        return WORSE
    if float(excess_evidence(gained, lost + gained, 0.5)) >= bar:
        return BETTER
    return SAME
