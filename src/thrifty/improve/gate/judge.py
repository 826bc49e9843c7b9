"""The judgement: which slices got worse, and whether all that counts is shown not to be.

Every metric over all items, and every domain of text, must be *shown* not to be worse than the
version that serves by the margin (a test of non-inferiority). All of them must, so a version that
is worse in any passes with a chance of at most `ALPHA`, however many there are (an
intersection-union test; Berger 1982). A slice, of which there may be many and small ones, must not
have lost more than the margin where a loss is *shown*. There each one is a chance for a false
alarm, so their p-values are adjusted by Holm's method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from thrifty.evaluate.divergence import Divergence
from thrifty.evaluate.statistics import paired_difference
from thrifty.improve.gate.items import Item
from thrifty.statistics.paired import (
    adjust_holm,
    count_needed,
    p_mean_not_worse,
    p_mean_worse,
    p_not_worse,
    p_worse,
)

ALPHA = 0.05
LEAST_SLICE = 5
"""Slices of fewer items are not told apart."""
SHOWN = 3
"""Examples of each failed slice."""
NOT_WORSE, WORSE, UNDECIDED = "not worse", "worse", "undecided"
TEXT = "text"
"""The metric of domains: the probability of a token, in the geometric mean."""

Grades = Mapping[str, Sequence[bool | None]]


@dataclass(frozen=True)
class Slice:
    """One metric on some items, or one domain of text."""

    metric: str
    """A key of `items.METRICS`, `items.PREFERRED`, or `TEXT`."""
    name: str
    """`all`, a tag such as `topic=billing`, or the name of a domain."""
    count: int
    """Items; for domains tokens."""
    candidate: float
    against: float
    base: float | None
    """A share for items, a perplexity for text. `base`: by the model that nobody has trained."""
    difference: float
    """Candidate minus the other; for text the relative change of a token's probability."""
    low: float
    high: float
    """Its 95% interval."""
    p_not_worse: float
    p_worse: float
    primary: bool
    """Whether it must be shown not to be worse."""
    outcome: str = UNDECIDED
    needed: int | None = None
    """For an undecided one: about how many items would decide it, if nothing got worse."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Questions with both answers, and the responses that they came from. Records leave the texts
    of users out."""

    @property
    def failed(self) -> bool:
        """Whether the version must not serve because of it."""
        return self.outcome == WORSE or (self.primary and self.outcome != NOT_WORSE)

    @property
    def label(self) -> str:
        """How people call it."""
        return f"{self.metric}: {self.name}"


def compare_items(
    items: Sequence[Item],
    candidate: tuple[Grades, Sequence[str]],
    against: tuple[Grades, Sequence[str]],
    base: Grades | None,
    margin: float,
) -> list[Slice]:
    """The slices of questions: grades and answers of both versions, and the base's grades."""
    members: dict[str, list[int]] = {"all": list(range(len(items)))}
    for number, item in enumerate(items):
        for tag, value in item.tags.items():
            members.setdefault(f"{tag}={value}", []).append(number)
    slices = []
    for metric in candidate[0]:
        new, old = candidate[0][metric], against[0][metric]
        whole = sum(one is not None for one in new)
        for name, numbers in members.items():
            own = [number for number in numbers if new[number] is not None]
            is_all = name == "all"
            # A slice that holds every item says nothing of its own.
            if not own or (not is_all and (len(own) < LEAST_SLICE or len(own) == whole)):
                continue
            made = _compare(metric, name, own, new, old, margin, primary=is_all)
            if base is not None and metric in base:
                made = replace(made, base=_share(base[metric], own))
            lost = [number for number in own if old[number] and not new[number]]
            shown = [
                {"question": items[number].question.text, "against": against[1][number],
                 "candidate": candidate[1][number],
                 **({"responses": items[number].responses} if items[number].responses else {})}
                for number in lost[:SHOWN]
            ]  # fmt: skip
            slices.append(replace(made, examples=shown))
    return slices


def _compare(
    metric: str,
    name: str,
    numbers: Sequence[int],
    new: Sequence[bool | None],
    old: Sequence[bool | None],
    margin: float,
    *,
    primary: bool,
) -> Slice:
    candidate = np.array([bool(new[number]) for number in numbers], float)
    against = np.array([bool(old[number]) for number in numbers], float)
    found = paired_difference(candidate, against)
    discordant = (found.gained + found.lost) / len(numbers)
    return Slice(
        metric, name, len(numbers), float(candidate.mean()), float(against.mean()), None,
        found.difference, found.low, found.high,
        p_not_worse(found.gained, found.lost, len(numbers), margin),
        p_worse(found.gained, found.lost), primary,
        needed=count_needed(discordant, margin, ALPHA),
    )  # fmt: skip


def _share(grades: Sequence[bool | None], numbers: Sequence[int]) -> float:
    return sum(bool(grades[number]) for number in numbers) / len(numbers)


def compare_text(
    name: str, found: Divergence | Mapping[str, Any], base_perplexity: float | None, margin: float
) -> Slice:
    """The slice of a domain: a candidate's divergence, measured with the other as the reference."""
    values = asdict(found) if isinstance(found, Divergence) else found
    ratio, stderr = values["perplexity_ratio"], values["perplexity_ratio_stderr"]
    # On the scale of logarithms, on which it is a mean over tokens.
    change, error = -math.log(ratio), stderr / ratio
    bound = -math.log(1 - margin)
    low, high = (math.expm1(change + side * 1.959964 * error) for side in (-1, 1))
    # A normal quantile of 95% and one of 80%, for the power, add up to 2.5.
    needed = math.ceil(values["tokens"] * (2.5 * error / bound) ** 2) if error > 0 else None
    return Slice(
        TEXT, name, values["tokens"], values["perplexity"], values["reference_perplexity"],
        base_perplexity, math.expm1(change), low, high, p_mean_not_worse(change, error, bound),
        p_mean_worse(change, error), primary=True, needed=needed,
    )  # fmt: skip


def decide(slices: Sequence[Slice], margin: float, alpha: float = ALPHA) -> list[Slice]:
    """The slices with their outcomes, failed ones first; `p_worse` is adjusted."""
    worse = adjust_holm([one.p_worse for one in slices])
    decided = []
    for one, p_bad in zip(slices, worse, strict=True):
        if p_bad <= alpha and one.difference < -margin:
            outcome = WORSE
        elif one.p_not_worse <= alpha:
            outcome = NOT_WORSE
        else:
            outcome = UNDECIDED
        # What certainly fell by more than the margin needs no more evidence.
        needed = one.needed if outcome == UNDECIDED and one.high > -margin else None
        decided.append(replace(one, p_worse=p_bad, outcome=outcome, needed=needed))
    order = {WORSE: 0, UNDECIDED: 1, NOT_WORSE: 2}
    return sorted(decided, key=lambda one: (not one.failed, not one.primary, order[one.outcome]))
