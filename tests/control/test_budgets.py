"""Budgets of a month as alerts."""

from __future__ import annotations

import time
from pathlib import Path

from thrifty.control.budgets import find_month_budgets, judge_budgets
from thrifty.cost.forecast import Budget, Forecast
from thrifty.db import open_database
from thrifty.db.keys import KeyLimits, create_key
from thrifty.db.tables import key_spend
from thrifty.observe.alerts.findings import BUDGET, KINDS


def budget(
    spent: float, limit: float | None, low: float | None = None, of: str = "deployment"
) -> Budget:
    high = None if low is None else low * 1.5
    amount = None if low is None else low * 1.2
    return Budget(of, "chat", spent, limit, Forecast(amount, low, high, "test"))


def test_what_is_nearly_spent_or_will_not_suffice_is_found() -> None:
    cases = [
        (budget(70, 100), None),
        (budget(80, 100), ("ticket", "the deployment chat has cost 80 of 100 this month")),
        (budget(100, 100), ("page", "the deployment chat has cost 100 of 100 this month")),
        (budget(5, 100, low=99.0), None),
        (
            budget(5, 100, low=110.0),
            ("ticket", "the deployment chat will cost 132 this month (at least 110), and the budget "
             "is 100; 5 is spent"),
        ),
        (budget(500, None, low=900.0), None),
        (budget(90, 100, of="tenant"), None),  # by key already
        (
            budget(9, 100, low=120.0, of="tenant"),
            ("ticket", "the tenant chat will cost 144 this month (at least 120), and the budget is "
             "100; 9 is spent"),
        ),
        (budget(95, 100, of="machine"), ("ticket", "the machine has cost 95 of 100 this month")),
    ]  # fmt: skip
    for given, expected in cases:
        found = judge_budgets([given], 0.8)
        assert [(one.severity, one.summary) for one in found] == ([expected] if expected else [])
        for one in found:
            assert one.kind == BUDGET
            assert one.deployment == ("chat" if given.of == "deployment" else "")
            assert one.runbook.endswith(KINDS[BUDGET])
    keys = {one.key for one in judge_budgets([budget(90, 100), budget(90, 100, of="machine")], 0.8)}
    assert len(keys) == 2


def test_a_tenant_whose_spend_grows_is_foreseen(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    key, _ = create_key(database, "shop", limits=KeyLimits(budget_month=10.0))
    assert find_month_budgets(database, 0.8, time.time()) == []
    now_s = 1_796_990_400.0  # 2026-12-11 12:00 UTC
    with database.begin() as connection:
        for day in range(1, 11):
            row = {
                "key_id": key.id,
                "day": f"2026-12-{day:02d}",
                "spend": 0.5 + day % 2 / 100,
                "updated_s": 1.0,
            }
            connection.execute(key_spend.insert().values(row))
    found = find_month_budgets(database, 0.8, now_s)
    assert [one.subject for one in found] == ["tenant:shop"]
    assert "will cost 15" in found[0].summary
    database.close()
