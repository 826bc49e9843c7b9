"""Drift: unchanged traffic raises no alarm, changes that matter do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thrifty.db import Database, open_database
from thrifty.db.drift import read_looks
from thrifty.db.quality_sums import QualitySum, SumRow, write_checks
from thrifty.db.rollups import DAY_S
from thrifty.observe.rollups.sketch import make_sketch
from thrifty.quality.check import merge_bytes
from thrifty.quality.detect import FAULTS
from thrifty.quality.drift import ANSWERS, compare_periods, look_at_days, make_period
from thrifty.quality.worse import compare_shares, find_drift, find_worse

START_S = 20_000 * DAY_S
PLACES = [("chat", "a"), ("chat", "b")]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    yield opened
    opened.close()


def make_day(chance: np.random.Generator, count: int = 400, **changes: Any) -> QualitySum:
    """The sums of a day, such as they are for a version whose answers have lengths of many sizes."""
    scale = changes.get("scale", 1.0)
    made = QualitySum()
    values = {
        "prompt_tokens": chance.lognormal(4, 1, count) * changes.get("asked", 1.0),
        "completion_tokens": np.ceil(chance.lognormal(5, 0.8, count) * scale),
        "word_length": chance.normal(4.6, 0.4, count),
        "distinct_words": chance.beta(20, 6, count),
    }
    for name, some in values.items():
        made.sketches[name] = make_sketch(list(some)).encode()
    for place, name in enumerate(FAULTS):
        share = changes.get(name, 0.002 * (place + 1))
        made.add(name, count, int(chance.binomial(count, share)), count, 0)
    return made


def make_row(day: int, found: QualitySum, version: str = "a") -> SumRow:
    return SumRow(START_S + day * DAY_S, "chat", version, found.counts, found.sketches)


def alarms(before: list[QualitySum], now: QualitySum) -> list[str]:
    first = make_period([make_row(day, one) for day, one in enumerate(before)])
    found = compare_periods(first, make_period([make_row(9, now)]), list(ANSWERS), list(FAULTS))
    return [one[0] for one in found if one[5]]


def test_unchanged_days_raise_no_alarm() -> None:
    """`benchmarks/quality_detection.py` does so for 1,000 months."""
    chance = np.random.default_rng(1)
    days = [make_day(chance) for _ in range(60)]
    assert [alarms(days[at - 7 : at], days[at]) for at in range(7, 60)] == [[]] * 53


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"scale": 0.6}, "completion_tokens"), ({"refusal": 0.1}, "refusal"), ({"loop": 0.08}, "loop")],
)  # fmt: skip
def test_a_change_that_matters_is_told(changes: dict[str, float], name: str) -> None:
    chance = np.random.default_rng(3)
    days = [make_day(chance) for _ in range(7)]
    assert alarms(days, make_day(chance, **changes)) == [name]


def test_a_change_that_does_not_matter_is_none() -> None:
    chance = np.random.default_rng(3)
    before = [make_day(chance, 40_000) for _ in range(3)]
    assert alarms(before, make_day(chance, 40_000, scale=1.08)) == []
    few = [make_day(chance, 100) for _ in range(2)]
    assert alarms(few, make_day(chance, 100, scale=9.0)) == []


def save(database: Database, turn: int, day: int, found: QualitySum, version: str = "a") -> None:
    at_s = START_S + day * DAY_S
    write_checks(database, turn, [], [], [], [], {(at_s, "chat", version): found}, merge_bytes)


def test_each_day_is_looked_at_once_when_it_is_over(database: Database) -> None:
    chance = np.random.default_rng(5)
    for day in range(6):
        save(database, day, day, make_day(chance, asked=4.0 if day == 4 else 1.0))
    now_s = START_S + 5.5 * DAY_S
    found = look_at_days(database, now_s)
    assert {(one.at_s - START_S) // DAY_S for one in found} == {2, 3, 4}
    assert [(one.name, one.version) for one in found if one.drifted] == [("prompt_tokens", "")]
    assert look_at_days(database, now_s) == []
    assert len(read_looks(database)) == len(found)
    (told,) = find_drift(database, PLACES, now_s)
    assert "of what is asked changed by" in told.summary
    assert find_drift(database, [("other", "a")], now_s) == []


def make_version(version: str, count: int, refused: float, accepted: float, seed: int) -> SumRow:
    chance = random.Random(seed)
    made = QualitySum()
    for name, share in (("refusal", refused), ("accepted", accepted)):
        made.add(name, count, sum(chance.random() < share for _ in range(count)), count, 0)
    return make_row(0, made, version)


def test_a_worse_version_is_told_from_its_neighbour(database: Database) -> None:
    good = make_version("a", 4000, 0.02, 0.8, 1)
    worse = make_version("b", 4000, 0.09, 0.7, 2)
    told = compare_shares([good, worse], PLACES, 0.05)
    assert [(one.version, one.subject) for one in told] == [("b", "refusal"), ("b", "accepted")]
    assert compare_shares([good, worse], [("chat", "a")], 0.05) == []
    assert compare_shares([good, worse], PLACES, 0.2) == []
    same = make_version("b", 4000, 0.02, 0.8, 3)
    assert compare_shares([good, same], PLACES, 0.001) == []
    assert compare_shares([worse], PLACES, 0.05) == []
    assert find_worse(database, PLACES, 0.05) == []
