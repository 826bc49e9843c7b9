"""Spend of keys: a ledger in memory, and sums in a real database that several workers add to."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from thrifty.db import Database, open_database
from thrifty.db.spend import prune_spend
from thrifty.db.tables import key_spend
from thrifty.gateway.admission.spend import (
    SpendLedger,
    SpendSync,
    name_day,
    until_next_day_s,
    until_next_month_s,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()


def database_in(folder: Path) -> Database:
    return open_database(f"sqlite:///{folder}/thrifty.db", migrate=True)


def test_ends_of_days_and_months() -> None:
    assert name_day(NOON) == "2026-11-23"
    assert until_next_day_s(NOON) == 12 * 3600
    assert until_next_month_s(NOON) == (7 * 24 + 12) * 3600
    december = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    assert until_next_month_s(december) == 1


def test_a_ledger_counts_by_day_and_month() -> None:
    now = [NOON]
    ledger = SpendLedger(lambda: now[0])
    assert ledger.spent("k") == (0.0, 0.0)
    ledger.add("k", 1.0)
    assert ledger.take_pending() == {("k", "2026-11-23"): 1.0}
    ledger.add("k", 0.5)
    # Amounts being written and later amounts count; those of other keys do not.
    assert ledger.spent("k") == (1.5, 1.5)
    assert ledger.spent("other") == (0.0, 0.0)
    ledger.confirm({("k", "2026-11-23"): 3.0, ("k", "2026-11-02"): 10.0})
    assert ledger.spent("k") == (3.5, 13.5)
    now[0] += 86400
    assert ledger.spent("k") == (0.0, 13.5)
    now[0] += 14 * 86400
    assert ledger.spent("k") == (0.0, 0.0)


def test_failed_writes_are_repeated_exactly_once() -> None:
    ledger = SpendLedger(lambda: NOON)
    ledger.add("k", 1.0)
    ledger.take_pending()  # and the database fails
    ledger.add("k", 2.0)
    assert ledger.take_pending() == {("k", "2026-11-23"): 3.0}
    assert ledger.spent("k") == (3.0, 3.0)
    ledger.confirm({("k", "2026-11-23"): 3.0})
    assert ledger.take_pending() == {}
    assert ledger.spent("k") == (3.0, 3.0)


@pytest.mark.slow
async def test_workers_share_spend_and_restarts_lose_none(tmp_path: Path) -> None:
    database = database_in(tmp_path)
    books = [SpendLedger() for _ in range(3)]
    keepers = [SpendSync(database, ledger) for ledger in books]
    for keeper in keepers:
        await keeper.start()
    for _ in range(40):
        for index, ledger in enumerate(books):
            ledger.add("k", 0.01 * (index + 1))
        await asyncio.sleep(0.01)
    for _ in range(300):
        if all(ledger.spent("k")[0] == pytest.approx(2.4) for ledger in books):
            break
        await asyncio.sleep(0.02)
    assert [ledger.spent("k")[0] for ledger in books] == [pytest.approx(2.4)] * 3
    books[0].add("k", 1.0)
    for keeper in keepers:
        await keeper.stop()
    with database.begin() as connection:
        rows = connection.execute(select(key_spend.c.day, key_spend.c.spend)).all()
    assert [tuple(row) for row in rows] == [
        (name_day(datetime.now(UTC).timestamp()), pytest.approx(3.4))
    ]
    fresh = SpendLedger()
    keeper = SpendSync(database, fresh)
    await keeper.start()
    assert fresh.spent("k") == (pytest.approx(3.4), pytest.approx(3.4))
    await keeper.stop()
    prune_spend(database)
    database.close()


async def test_a_locked_database_costs_no_spend(tmp_path: Path) -> None:
    import sqlite3

    database = database_in(tmp_path)
    ledger = SpendLedger()
    keeper = SpendSync(database, ledger)
    await keeper.start()
    locker = sqlite3.connect(tmp_path / "thrifty.db", isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    ledger.add("k", 1.0)
    await asyncio.sleep(0.5)
    ledger.add("k", 1.0)
    assert ledger.spent("k") == (2.0, 2.0)
    locker.execute("ROLLBACK")
    locker.close()
    await keeper.stop()
    fresh = SpendLedger()
    keeper = SpendSync(database, fresh)
    await keeper.start()
    assert fresh.spent("k") == (2.0, 2.0)
    await keeper.stop()
    database.close()
