"""Spend of keys: this worker's share in memory, the total in the database.

Budgets hold across gateway workers with and without Redis, because the database holds one sum per
key and day. A task adds the cost of this worker's requests and reads the sums of all workers. No
request waits for it. A worker that is killed loses at most `INTERVAL_S` of its own share.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from thrifty.db import Database
from thrifty.db.spend import KeyDay, exchange_spend, prune_spend
from thrifty.errors import DatabaseError
from thrifty.gateway.state.reader import FIRST_READ_TIMEOUT_S
from thrifty.observe.clock_watch import ClockWatch

log = logging.getLogger(__name__)

INTERVAL_S = 0.25
READ_S = 1.0
"""The spend of other workers is known with this delay, unless Redis counts it."""
RETRY_S = 2.0
STOP_S = 5.0
PRUNE_S = 86400.0


def name_day(at_s: float) -> str:
    """The day (UTC) of a time in seconds since 1970."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")


def until_next_day_s(at_s: float) -> float:
    """Seconds until the day (UTC) ends."""
    return 86400.0 - at_s % 86400.0


def until_next_month_s(at_s: float) -> float:
    """Seconds until the month (UTC) ends."""
    now = datetime.fromtimestamp(at_s, UTC)
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=32)).replace(day=1)
    return (following - now).total_seconds()


class SpendLedger:
    """Sums by key and day. Plain state."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[str, dict[str, float]] = {}
        """Sums by key and day, as last read from the database."""
        self._pending: dict[str, dict[str, float]] = {}
        """Amounts that are still to be written."""
        self._writing: dict[str, dict[str, float]] = {}
        """Amounts that are being written."""

    def add(self, key_id: str, cost: float) -> None:
        """Add the cost of a request to today's sum."""
        _add(self._pending, key_id, name_day(self._clock()), cost)

    def spent(self, key_id: str) -> tuple[float, float]:
        """The spend of a key today and this month."""
        day = name_day(self._clock())
        month = day[:7]
        today = total = 0.0
        for sums in (self._known, self._pending, self._writing):
            for when, amount in sums.get(key_id, _NOTHING).items():
                if when == day:
                    today += amount
                if when.startswith(month):
                    total += amount
        return today, total

    def take_pending(self) -> dict[KeyDay, float]:
        """The amounts to write, including those taken before but not yet confirmed by `confirm`."""
        for key_id, days in self._pending.items():
            for day, amount in days.items():
                _add(self._writing, key_id, day, amount)
        self._pending = {}
        return {(key_id, day): amount for key_id, days in self._writing.items()
                for day, amount in days.items()}  # fmt: skip

    def confirm(self, sums: Mapping[KeyDay, float]) -> None:
        """Confirm that the taken amounts are in the database, which now holds `sums`."""
        self._writing = {}
        for (key_id, day), amount in sums.items():
            self._known.setdefault(key_id, {})[day] = amount
        month = name_day(self._clock())[:7]
        for key_id, days in list(self._known.items()):
            for day in [day for day in days if not day.startswith(month)]:
                del days[day]
            if not days:
                del self._known[key_id]


_NOTHING: dict[str, float] = {}


def _add(sums: dict[str, dict[str, float]], key_id: str, day: str, amount: float) -> None:
    days = sums.setdefault(key_id, {})
    days[day] = days.get(day, 0.0) + amount


class SpendSync:
    """The task that writes spend to the database and reads it back."""

    def __init__(self, database: Database, ledger: SpendLedger) -> None:
        self._database = database
        self._ledger = ledger
        self._up = True
        self._since_s = 0.0
        self._read_s = -READ_S
        self._pruned_s = time.monotonic()
        self._clock = ClockWatch()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start; returns once the sums are known, or after a bounded wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READ_TIMEOUT_S):
                await self._try()
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Write what is left, for at most `STOP_S`."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=STOP_S)
            self._task.cancel()

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S if self._up else RETRY_S):
                    await self._stopping.wait()
            await self._try()
        await self._try()  # amounts added during the last write

    async def _try(self) -> None:
        try:
            await self._exchange()
        except DatabaseError as error:
            self._note_state(False, error)
            if self._database.recover():
                self._since_s = 0.0
        else:
            self._note_state(True, None)

    async def _exchange(self) -> None:
        """Write the cost of this worker's requests, and read the sums if due."""
        amounts = self._ledger.take_pending()
        now_s = time.monotonic()
        if not amounts and now_s - self._read_s < READ_S:
            return
        at_s = time.time()
        first_day = f"{name_day(at_s)[:7]}-01"
        sums = await asyncio.to_thread(
            exchange_spend, self._database, amounts, first_day, self._since_s
        )
        self._ledger.confirm(sums)
        self._since_s, self._read_s = at_s, now_s
        if now_s - self._pruned_s > PRUNE_S and self._clock.may_delete():
            self._pruned_s = now_s
            await asyncio.to_thread(prune_spend, self._database)

    def _note_state(self, up: bool, error: DatabaseError | None) -> None:
        if up != self._up:
            self._up = up
            if up:
                log.info("spend is being written to the database again")
            else:
                log.warning("spend cannot be written, it is kept in memory: %s", error)
