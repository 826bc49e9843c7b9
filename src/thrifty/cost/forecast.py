"""Budgets of a month (UTC), and what the month will come to.

The forecast goes on at the mean of the last full days, at most `DAYS`. Its interval is that of a sum
of further days whose costs vary as those did: t(n-1) * s * sqrt(r * (1 + r / n)) for r days to come
after n days with standard deviation s. A trend or a weekend within the month is not known to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from thrifty.cost.amounts import to_amount
from thrifty.cost.cells import price_cell, read_cells
from thrifty.db.desired_state import DesiredService
from thrifty.db.replica_spans import MACHINE
from thrifty.db.rollups import DAY_S
from thrifty.db.tables import desired, key_spend, keys

DAYS = 28
FEWEST_DAYS = 3
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052,
)  # fmt: skip
"""Student's t, 97.5%, for 1 to 27 degrees of freedom."""


@dataclass(frozen=True)
class Forecast:
    """What a month will come to, with a 95% interval, and what that rests on."""

    amount: float | None
    low: float | None
    high: float | None
    basis: str


@dataclass(frozen=True)
class Budget:
    """A month's cost of a deployment, a tenant, or the machine; `limit` is None without a budget."""

    of: str
    name: str
    spent: float
    limit: float | None
    forecast: Forecast

    def describe(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "of": self.of, "name": self.name, "spent": self.spent, "budget": self.limit,
            "forecast": self.forecast.amount, "forecast_low": self.forecast.low,
            "forecast_high": self.forecast.high, "basis": self.forecast.basis,
        }  # fmt: skip


def read_budgets(
    connection: Connection, now_s: float, fill_per_hour: float | None = None
) -> list[Budget]:
    """The month so far and its forecast: of the machine, of each deployment, and of each tenant by
    the prices of tokens.
    """
    month_s, end_s = find_month(now_s)
    limits = _read_limits(connection)
    start = int((min(month_s, now_s - DAYS * DAY_S)) // DAY_S) * DAY_S
    costs: dict[tuple[str, str], dict[int, float]] = {}
    for (deployment, _, day), cell in read_cells(
        connection, start, now_s, DAY_S, by_day=True
    ).items():
        key = ("machine", "") if deployment == MACHINE else ("deployment", deployment)
        days = costs.setdefault(key, {})
        days[day] = days.get(day, 0.0) + to_amount(price_cell(cell, fill_per_hour).total)
    found = []
    for (of, name), days in sorted(costs.items()):
        forecast = predict(days, month_s, end_s, now_s)
        found.append(Budget(of, name, _sum_from(days, month_s), limits.get(name), forecast))
    for tenant, (days, limit) in sorted(_read_tenants(connection, start).items()):
        forecast = predict(days, month_s, end_s, now_s)
        found.append(Budget("tenant", tenant, _sum_from(days, month_s), limit, forecast))
    return found


def predict(days: Mapping[int, float], month_s: int, end_s: int, now_s: float) -> Forecast:
    """What a month comes to that began at `month_s` and ends at `end_s`, from costs by day. Days
    without a cost count as 0 from the first one with a cost on.
    """
    today = int(now_s // DAY_S) * DAY_S
    full = [day for day in days if day < today]
    if not full:
        return Forecast(None, None, None, "no full day yet")
    first = max(min(full), today - DAYS * DAY_S)
    known = [days.get(day, 0.0) for day in range(first, today, DAY_S)]
    count = len(known)
    if count < FEWEST_DAYS:
        return Forecast(None, None, None, f"{count} full days; {FEWEST_DAYS} are needed")
    mean = math.fsum(known) / count
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in known) / (count - 1))
    left = (end_s - now_s) / DAY_S
    spent = _sum_from(days, month_s)
    half = _T_95[count - 2] * spread * math.sqrt(left * (1 + left / count))
    amount = spent + left * mean
    basis = f"the mean of the last {count} full days for {left:.1f} more days"
    return Forecast(amount, max(spent, amount - half), amount + half, basis)


def find_month(at_s: float) -> tuple[int, int]:
    """When the month (UTC) of a time begins and ends, in seconds since 1970."""
    now = datetime.fromtimestamp(at_s, UTC)
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=32)).replace(day=1)
    return int(first.timestamp()), int(following.timestamp())


def _sum_from(days: Mapping[int, float], month_s: int) -> float:
    return math.fsum(amount for day, amount in days.items() if day >= month_s)


def _read_limits(connection: Connection) -> Mapping[str, float]:
    """The budgets of the spec; the empty name has the machine's."""
    text = connection.execute(select(desired.c.state).where(desired.c.name == "")).scalar()
    return {} if text is None else msgspec.json.decode(text, type=DesiredService).budgets


def _read_tenants(
    connection: Connection, from_s: int
) -> dict[str, tuple[dict[int, float], float | None]]:
    """Spend by day of each tenant's keys, and what these may spend in a month together; None where
    one of them may spend without a bound.
    """
    first = datetime.fromtimestamp(from_s, UTC).strftime("%Y-%m-%d")
    spend = (
        select(keys.c.tenant, key_spend.c.day, key_spend.c.spend)
        .join(keys, keys.c.id == key_spend.c.key_id)
        .where(key_spend.c.day >= first)
    )
    limits: dict[str, list[float | None]] = {}
    found: dict[str, dict[int, float]] = {}
    for tenant, budget in connection.execute(
        select(keys.c.tenant, keys.c.budget_month).where(keys.c.revoked_s.is_(None))
    ):
        limits.setdefault(tenant, []).append(budget)
    for row in connection.execute(spend):
        day = int(datetime.strptime(row.day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
        days = found.setdefault(row.tenant, {})
        days[day] = days.get(day, 0.0) + row.spend
    names: Sequence[str] = sorted({*found, *(one for one, many in limits.items() if any(many))})
    return {name: (found.get(name, {}), _add_limits(limits.get(name, []))) for name in names}


def _add_limits(limits: Sequence[float | None]) -> float | None:
    bounded = [one for one in limits if one is not None]
    return math.fsum(bounded) if bounded and len(bounded) == len(limits) else None
