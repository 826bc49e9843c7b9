"""What is known of each candidate of a search, what became of it, and who is ahead of whom."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from thrifty.optimize.candidate import Candidate
from thrifty.optimize.intervals import Interval, find_worst


class Status(StrEnum):
    """What became of a candidate."""

    OPEN = "open"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    """It could not be made, served or asked."""
    BEYOND = "beyond the bound"
    UNCERTAIN = "not certain"
    """Its interval holds the bound even after all tokens and questions."""
    DOMINATED = "dominated"
    HALVED = "halved"
    NO_TIME = "no time"
    PASSED = "passed"
    WINNER = "winner"


@dataclass(frozen=True)
class Goal:
    """What is sought."""

    max_drop: float
    price_per_hour: float = 1.0
    questions: tuple[int, ...] = (300,)
    """How many the model is asked at first, and where those leave it undecided; empty: none."""
    load_s: int = 20
    """Seconds of the whole load."""


@dataclass
class Standing:
    """What is known of a candidate, and what became of it."""

    candidate: Candidate
    status: Status = Status.OPEN
    why: str = ""
    rung: str = ""
    """How far it came."""
    drops: dict[str, Interval] = field(default_factory=dict)
    """By domain, and by `ANSWERS_KEPT`."""
    cost: Interval | None = None
    speed: Interval | None = None
    """Tokens per second within the objective."""
    measured: dict[str, Any] = field(default_factory=dict)
    """The values of its steps, by kind; the newest."""

    def close(self, status: Status, why: str) -> None:
        """It is out; the first reason stays."""
        if self.status is Status.OPEN:
            self.status, self.why = status, why

    @property
    def worst(self) -> tuple[str, Interval] | None:
        """What it drops most on."""
        return find_worst(self.drops)

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        worst = self.worst
        return {
            **self.candidate.as_dict(), "status": self.status.value, "why": self.why,
            "rung": self.rung, "worst": None if worst is None else worst[0],
            "drops": {name: one.as_dict() for name, one in self.drops.items()},
            "cost_per_million_tokens": None if self.cost is None else self.cost.as_dict(),
            "tokens_per_s_within_objective": None if self.speed is None else self.speed.as_dict(),
            "memory_bytes": self.measured.get("memory_bytes"),
            "size_bytes": self.measured.get("size_bytes"), "model": self.measured.get("model"),
        }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """All candidates, and the one that was sought if there is one."""

    standings: list[Standing]
    winner: Standing | None
    nearest: Standing | None
    """Without a winner: the one with the smallest drop, as far as it may be."""
    spent_s: float


def rank(one: Standing) -> tuple[float, float, str]:
    """The cheaper first; of equal costs, as under a trace that both keep up with, the smaller."""
    cost = one.cost.value if one.cost is not None else math.inf
    rounded = float(f"{cost:.3g}") if math.isfinite(cost) else math.inf
    return rounded, float(one.measured.get("memory_bytes") or 0), one.candidate.id


def rank_by_drop(one: Standing) -> float:
    """The one that certainly drops least first."""
    return max((drop.high for drop in one.drops.values()), default=math.inf)


def costs_less(a: Standing, b: Standing) -> bool:
    """Whether `a` costs less than `b`, for certain."""
    return a.cost is not None and b.cost is not None and a.cost.high < b.cost.low


def dominates(a: Standing, b: Standing) -> bool:
    """Whether `a` certainly costs less and is certainly no worse: the same form, or a smaller drop."""
    if not costs_less(a, b):
        return False
    worst_a, worst_b = a.worst, b.worst
    if a.candidate.form.id == b.candidate.form.id or worst_a is None or worst_b is None:
        return a.candidate.form.id == b.candidate.form.id
    return worst_a[1].high <= worst_b[1].low
