"""A model's result on a task, and its reference's on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thrifty.evaluate.statistics import PairedDifference, Proportion, paired_difference, proportion


@dataclass(frozen=True)
class TaskResult:
    """A model's result on a task, and its reference's on the same items."""

    score: Proportion
    by_length: Proportion
    reference: Proportion
    paired: PairedDifference
    changed: int
    """Items that the two answer differently, whether right or wrong."""
    not_inferior: bool
    margin: float
    metric: str = "accuracy"
    is_share: bool = True
    """Whether the metric is a share of correct answers; otherwise `margin` is relative to the
    reference's score."""
    higher_is_better: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The output of `thrifty evaluate --json`."""
        return {
            "metric": self.metric,
            "score": self.score.share,
            "low": self.score.low,
            "high": self.score.high,
            "score_by_length": self.by_length.share,
            "items": self.score.count,
            "reference": self.reference.share,
            "difference": self.paired.difference,
            "difference_low": self.paired.low,
            "difference_high": self.paired.high,
            "flips": {
                "gained": self.paired.gained, "lost": self.paired.lost, "changed": self.changed,
            },
            "not_inferior": self.not_inferior,
            "margin": self.margin,
            "higher_is_better": self.higher_is_better,
        }  # fmt: skip


def compare_answers(
    given: Sequence[dict[str, Any]], known: Sequence[dict[str, Any]], margin: float
) -> TaskResult:
    """Compare two models' answers to the same items."""
    right = np.array([answer["right"] for answer in given], dtype=np.float64)
    before = np.array([answer["right"] for answer in known], dtype=np.float64)
    paired = paired_difference(right, before)
    count = len(right)
    return TaskResult(
        score=proportion(int(right.sum()), count),
        by_length=proportion(sum(answer["right_by_length"] for answer in given), count),
        reference=proportion(int(before.sum()), count),
        paired=paired,
        changed=sum(a["chosen"] != b["chosen"] for a, b in zip(given, known, strict=True)),
        not_inferior=paired.is_not_inferior(margin),
        margin=margin,
    )
