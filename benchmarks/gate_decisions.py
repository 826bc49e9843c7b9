"""How often the gate decides rightly: simulated gates, judged by the code that judges real ones.

    python benchmarks/gate_decisions.py

Each gate asks two versions the same questions, in topics of equal size; a tenth of the answers
differs by chance. Four worlds: the new version is equal; it is worse by the margin of 5 points, or
by 10; or one topic broke and the rest did not change. The contender is what test harnesses do: it
refuses where the share of any slice fell by more than the margin. Nothing else runs, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common import figure, finish, parse_arguments, say
from thrifty.evaluate.questions import Question
from thrifty.evaluate.statistics import proportion
from thrifty.improve.gate.items import INTACT, METRICS, RIGHT, WILLING, Item
from thrifty.improve.gate.judge import WORSE, Slice, compare_items, decide

GATES = 1000
TOPICS, SIZES = 12, (300, 504)
MARGIN, DISCORDANT, RIGHT_SHARE = 0.05, 0.10, 0.7
BROKEN = "topic=0"


def make_items(count: int) -> list[Item]:
    return [
        Item(Question((("user", f"{n}?"),), (str(n),)), {"set": "s", "topic": str(n % TOPICS)})
        for n in range(count)
    ]


def draw(rng: Any, count: int, drop: float, *, broken: bool) -> tuple[Any, Any]:
    """Which answers of the serving and of the new version are right."""
    old = rng.random(count) < RIGHT_SHARE
    # Of the answers that differ, `drop` more are lost than gained.
    lose = (DISCORDANT + drop) / 2 / RIGHT_SHARE
    gain = (DISCORDANT - drop) / 2 / (1 - RIGHT_SHARE)
    chance = rng.random(count)
    new = np.where(old, chance >= lose, chance < gain)
    if broken:
        new &= (np.arange(count) % TOPICS != 0) | (rng.random(count) < 0.25)
    return old, new


def judge(items: Sequence[Item], old: Any, new: Any) -> list[Slice]:
    def grade(right: Any) -> dict[str, list[bool | None]]:
        whole: list[bool | None] = [True] * len(items)
        none: list[bool | None] = [None] * len(items)
        own = {RIGHT: right.tolist(), INTACT: whole, WILLING: whole}
        return {metric: own.get(metric, none) for metric in METRICS}

    texts = [""] * len(items)
    found = compare_items(items, (grade(new), texts), (grade(old), texts), None, MARGIN)
    return decide(found, MARGIN)


def main() -> None:
    arguments = parse_arguments(__doc__ or "", rounds=GATES)
    gates = arguments.rounds
    worlds = {"equal": (0.0, False), "5 points worse": (0.05, False), "10 points worse": (0.1, False),
              "one topic broke": (0.0, True)}  # fmt: skip
    table = [["questions", "world", "refused", "by the contender", "the broken topic named"]]
    record: dict[str, Any] = {"gates": gates, "results": []}
    shares: dict[tuple[int, str], tuple[Any, Any, Any]] = {}
    for size in SIZES:
        items = make_items(size)
        for name, (drop, broken) in worlds.items():
            rng = np.random.default_rng(size)
            refused = naive = named = 0
            for _ in range(gates):
                slices = judge(items, *draw(rng, size, drop, broken=broken))
                refused += any(one.failed for one in slices)
                naive += any(one.difference < -MARGIN for one in slices)
                named += any(one.name == BROKEN and one.outcome == WORSE for one in slices)
            found = tuple(proportion(count, gates) for count in (refused, naive, named))
            shares[size, name] = found
            texts = [f"{one.share:.1%} ({one.low:.1%} to {one.high:.1%})" for one in found]
            table.append([str(size), name, texts[0], texts[1], texts[2] if broken else ""])
            record["results"].append(
                {"questions": size, "world": name, "refused": vars(found[0]),
                 "contender": vars(found[1]), "named": vars(found[2])}
            )  # fmt: skip
            say(" ".join(table[-1]))
    size = SIZES[-1]
    equal, at, beyond = (shares[size, name][0] for name in list(worlds)[:3])
    slice_named = shares[size, "one topic broke"][2]
    figures = [
        figure("an equal version is refused", [equal.share], "<= 0.05 x", equal.share <= 0.05, "{:.3f}"),
        figure("a version that is worse by the margin passes", [1 - at.share], "<= 0.05 x, within error",
               1 - at.high <= 0.05, "{:.3f}"),
        figure("a version that is worse by twice the margin passes, upper bound",
               [1 - beyond.low], "<= 0.02 x", 1 - beyond.low <= 0.02, "{:.3f}"),
        figure("a topic that lost three answers of four is named", [slice_named.share], ">= 0.95 x",
               slice_named.share >= 0.95, "{:.3f}"),
    ]  # fmt: skip
    finish("gate_decisions", record, table, figures, save=not arguments.no_save)


if __name__ == "__main__":
    main()
