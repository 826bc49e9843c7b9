"""Forecasts of a month, with intervals that hold what comes."""

from __future__ import annotations

import datetime
import random
from datetime import UTC
from pathlib import Path

import pytest

from thrifty.cost.forecast import find_month, predict, read_budgets
from thrifty.db import open_database
from thrifty.db.keys import KeyLimits, create_key
from thrifty.db.rollups import DAY_S
from thrifty.db.spend import exchange_spend

JUNE_S, JULY_S = (
    int(datetime.datetime(2026, month, 1, tzinfo=UTC).timestamp()) for month in (6, 7)
)


def test_a_month_begins_and_ends_in_utc() -> None:
    assert find_month(JUNE_S) == find_month(JULY_S - 1) == (JUNE_S, JULY_S)
    december = datetime.datetime(2026, 12, 31, 23, tzinfo=UTC).timestamp()
    assert find_month(december)[1] == datetime.datetime(2027, 1, 1, tzinfo=UTC).timestamp()


def test_a_steady_cost_is_foreseen() -> None:
    days = {JUNE_S + day * DAY_S: 2.0 for day in range(-5, 10)}
    found = predict(days, JUNE_S, JULY_S, JUNE_S + 10 * DAY_S)
    assert found.amount == found.low == found.high == pytest.approx(60.0)
    assert "last 15 full days for 20.0 more days" in found.basis


def test_too_few_days_give_no_forecast() -> None:
    now_s = JUNE_S + 2 * DAY_S + 60
    assert predict({}, JUNE_S, JULY_S, now_s).basis == "no full day yet"
    found = predict({JUNE_S: 1.0, JUNE_S + 2 * DAY_S: 5.0}, JUNE_S, JULY_S, now_s)
    assert (found.amount, found.basis) == (None, "2 full days; 3 are needed")


def test_the_interval_holds_the_month_in_most_of_many() -> None:
    rng = random.Random(4)
    inside = 0
    for _ in range(400):
        days = {JUNE_S + day * DAY_S: rng.gauss(10, 3) for day in range(30)}
        known = {day: cost for day, cost in days.items() if day < JUNE_S + 8 * DAY_S}
        found = predict(known, JUNE_S, JULY_S, JUNE_S + 8 * DAY_S)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= sum(days.values()) <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_tenants_have_the_budgets_of_their_keys(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    keys = [
        create_key(database, name, tenant=tenant, limits=KeyLimits(budget_month=budget))[0]
        for name, tenant, budget in (("a", "ann", 5.0), ("b", "ann", 7.0), ("c", "bob", None))
    ]
    spent = {(key.id, "2026-06-02"): 1.5 for key in keys}
    exchange_spend(database, spent, "2026-06-01", 0.0)
    with database.begin() as connection:
        found = read_budgets(connection, JUNE_S + 5 * DAY_S)
    assert [(one.name, one.spent, one.limit) for one in found] == [
        ("ann", 3.0, 12.0), ("bob", 1.5, None),
    ]  # fmt: skip
    database.close()
