"""Budgets of a month that are nearly spent, or will not suffice: alerts beside those on keys."""

from __future__ import annotations

from collections.abc import Iterable

from thrifty.cost.forecast import Budget, read_budgets
from thrifty.db import Database
from thrifty.observe.alerts.findings import BUDGET, Finding
from thrifty.observe.burn import PAGE, TICKET, Severity

_OF = {
    "machine": "the machine",
    "deployment": "the deployment {name}",
    "tenant": "the tenant {name}",
}


def find_month_budgets(database: Database, share: float, now_s: float) -> list[Finding]:
    """Budgets of the machine, of deployments and of tenants of which at least `share` is spent, or
    which the month will exceed. Raises `DatabaseError`.
    """
    with database.begin() as connection:
        return judge_budgets(read_budgets(connection, now_s), share)


def judge_budgets(budgets: Iterable[Budget], share: float) -> list[Finding]:
    """As `find_month_budgets`. A forecast counts where even the lower end of its interval is above the
    budget. What is spent of a tenant's keys has alerts of its own, by key.
    """
    found = []
    for one in budgets:
        if one.limit is None or one.limit <= 0:
            continue
        deployment = one.name if one.of == "deployment" else ""
        who = _OF[one.of].format(name=one.name)
        low = one.forecast.low
        severity: Severity = PAGE if one.spent >= one.limit else TICKET
        if one.of != "tenant" and one.spent >= share * one.limit:
            summary = f"{who} has cost {one.spent:.4g} of {one.limit:.4g} this month"
        elif low is not None and low > one.limit:
            severity = TICKET
            summary = (
                f"{who} will cost {one.forecast.amount:.4g} this month (at least {low:.4g}), and "
                f"the budget is {one.limit:.4g}; {one.spent:.4g} is spent"
            )
        else:
            continue
        found.append(Finding(BUDGET, severity, deployment, "", f"{one.of}:{one.name}", summary))
    return found
