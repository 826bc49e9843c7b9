"""Whether what is asked, and how versions answer, is another than on the days before.

Each day is compared once, when it is over, with up to seven days before it: whole days, so that night
and day are no change. Distributions are compared by Kolmogorov and Smirnov's test, shares of faults by
Fisher's, embeddings by their maximum mean discrepancy. All figures of one look are adjusted together (Benjamini and Hochberg).

Tests find any difference if there is enough of it, so that a change must also be large enough to
matter (`EFFECTS`). Days go on for ever: each look has a thirtieth of `ALPHA`, so that where nothing
changes, a version has a false alarm in a month with a chance of at most `ALPHA`. A fixed bound on
a distance such as the population stability index would cry wolf on few requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.db import Database
from thrifty.db.drift import DriftLook, read_looks, save_looks
from thrifty.db.quality_sums import SumRow, read_sums
from thrifty.db.rollups import DAY_S
from thrifty.db.vectors import Embedded, read_vectors
from thrifty.observe.rollups.sketch import Sketch, decode_sketches, merge_sketches
from thrifty.quality.detect import FAULTS
from thrifty.statistics.drift import (
    adjust_benjamini_hochberg,
    compare_counts,
    compare_vectors,
    fisher_exact,
)

ALPHA = 0.01
LOOKS_A_MONTH = 30
REFERENCE_DAYS = 7
LEAST_NOW, LEAST_BEFORE = 200, 500
"""Conversations that a day, and the days before, must have to be compared."""
INPUTS = {"prompt_tokens": "tokens of prompts"}
ANSWERS = {
    "completion_tokens": "tokens of answers",
    "word_length": "letters of words",
    "distinct_words": "distinct words of fifty",
}
LEAST_VECTORS, MOST_VECTORS = 50, 400
"""Embeddings of a day that are compared; of the days before as many, chosen by chance."""
LEAST_DISTANCE = 0.1
"""The least distance between two distributions that matters."""
LEAST_CHANGE = 0.03
"""The least change of a share that matters."""
CATCH_UP_DAYS = 3
Meaning = tuple[str, int, int, float, float]
"""Name, conversations before and now, the discrepancy, and its p-value."""


@dataclass(frozen=True)
class Period:
    """What was counted in some days: distributions, and faults as (answers, found)."""

    sketches: Mapping[str, Sketch]
    faults: Mapping[str, tuple[int, int]]


def make_period(rows: Sequence[SumRow]) -> Period:
    """The sums of some rows."""
    names = {name for row in rows for name in row.sketches}
    sketches = {
        name: merge_sketches(decode_sketches([row.sketches.get(name) for row in rows]))
        for name in names
    }
    faults = {}
    for name in FAULTS:
        found = [row.counts[name] for row in rows if name in row.counts]
        faults[name] = int(sum(one[0] for one in found)), int(sum(one[1] for one in found))
    return Period(sketches, faults)


def compare_periods(
    before: Period,
    now: Period,
    values: Sequence[str],
    faults: Sequence[str] = (),
    meanings: Sequence[Meaning] = (),
) -> list[tuple[str, int, int, float, float, bool]]:
    """Each figure that can be compared: name, conversations before and now, the size of the change
    (the distance of distributions; the difference of shares), its adjusted p-value, and whether it is
    a change. `meanings` were compared already, and have plain p-values.
    """
    found = [(*one, LEAST_DISTANCE) for one in meanings]
    for name in values:
        first, second = before.sketches.get(name), now.sketches.get(name)
        if first is None or second is None or not _is_enough(first.count, second.count):
            continue
        distance, p_value = compare_counts(*_align(first, second))
        found.append((name, first.count, second.count, distance, p_value, LEAST_DISTANCE))
    for name in faults:
        (count, hits), (new_count, new_hits) = before.faults[name], now.faults[name]
        if not _is_enough(count, new_count):
            continue
        change = new_hits / new_count - hits / count
        p_value = fisher_exact(new_hits, new_count, hits, count)
        found.append((name, count, new_count, change, p_value, LEAST_CHANGE))
    adjusted = adjust_benjamini_hochberg([one[4] for one in found])
    level = ALPHA / LOOKS_A_MONTH
    return [
        (name, count, new_count, effect, p_value, p_value <= level and abs(effect) >= least)
        for (name, count, new_count, effect, _, least), p_value in zip(found, adjusted, strict=True)
    ]


def _is_enough(before: int, now: int) -> bool:
    return before >= LEAST_BEFORE and now >= LEAST_NOW


def _align(first: Sketch, second: Sketch) -> tuple[np.ndarray, np.ndarray]:
    """The counts of both in the same buckets."""
    indexes = np.union1d(first.indexes, second.indexes)
    both = []
    for one in (first, second):
        counts = np.zeros(len(indexes), np.int64)
        counts[np.searchsorted(indexes, one.indexes)] = one.counts
        both.append(counts)
    return both[0], both[1]


def look_at_days(database: Database, now_s: float) -> list[DriftLook]:
    """Compare the days that are over and were not looked at; returns what was found. Raises
    `DatabaseError`.
    """
    today = int(now_s // DAY_S) * DAY_S
    first = today - CATCH_UP_DAYS * DAY_S
    seen = {(one.at_s, one.deployment, one.version) for one in read_looks(database, first)}
    rows = read_sums(database, DAY_S, first - REFERENCE_DAYS * DAY_S)
    made: list[DriftLook] = []
    for day in range(first, today, DAY_S):
        for deployment, version in sorted({(row.deployment, row.version) for row in rows}):
            own = [row for row in rows if row.deployment == deployment and row.version == version]
            if (day, deployment, version) not in seen:
                said = compare_meanings(database, day, deployment, version)
                made += _look(own, day, deployment, version, list(ANSWERS), list(FAULTS), said)
        for deployment in sorted({row.deployment for row in rows}):
            if (day, deployment, "") not in seen:
                own = [row for row in rows if row.deployment == deployment]
                asked = compare_meanings(database, day, deployment, "")
                made += _look(own, day, deployment, "", list(INPUTS), [], asked)
    if made:
        save_looks(database, made)
    return made


def _look(
    rows: Sequence[SumRow],
    day: int,
    deployment: str,
    version: str,
    values: Sequence[str],
    faults: Sequence[str],
    meanings: Sequence[Meaning],
) -> list[DriftLook]:
    before = [row for row in rows if day - REFERENCE_DAYS * DAY_S <= row.at_s < day]
    now = [row for row in rows if row.at_s == day]
    if not before or not now:
        return []
    return [
        DriftLook(day, deployment, version, *one)
        for one in compare_periods(make_period(before), make_period(now), values, faults, meanings)
    ]


def compare_meanings(database: Database, day: int, deployment: str, version: str) -> list[Meaning]:
    """The embeddings of a day's answers (of questions, for the empty version) against those of the
    days before, where there are enough. Raises `DatabaseError`.
    """
    kind = "answer" if version else "asked"

    def read(since_s: float, until_s: float) -> list[Embedded]:
        found = read_vectors(database, deployment, since_s, until_s)
        return [one for one in found if not version or one.version == version]

    sides = [read(day - REFERENCE_DAYS * DAY_S, day), read(day, day + DAY_S)]
    if min(map(len, sides)) < LEAST_VECTORS:
        return []
    first, second = (_draw(side, day) for side in sides)
    if len({len(one.answer) for one in (*first, *second)}) > 1:
        return []  # another encoder came in between
    numbers = {one.group: place for place, one in enumerate([*first, *second])}
    groups = [np.array([numbers[one.group] for one in side]) for side in (first, second)]
    vectors = [np.array([getattr(one, kind) for one in side]) for side in (first, second)]
    found = compare_vectors(vectors[0], vectors[1], groups, seed=day)
    effect = math.sqrt(max(0.0, found.squared))
    return [(f"{kind}_meaning", len(first), len(second), effect, found.p_value)]


def _draw(found: Sequence[Embedded], seed: int) -> list[Embedded]:
    if len(found) <= MOST_VECTORS:
        return list(found)
    chosen = np.random.default_rng(seed).choice(len(found), MOST_VECTORS, replace=False)
    return [found[place] for place in sorted(chosen)]
