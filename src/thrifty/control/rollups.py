"""Keeps the rollups up to date while a controller runs.

Of the controllers that share a database one does it, by a lease; that another one takes over early
would do no harm (`db.rollups`). It runs in the controller's process, so that no request waits for
its arithmetic. What is written while no controller runs is added when the next one does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from thrifty.background import step_back
from thrifty.cost.held import settle
from thrifty.db import Database
from thrifty.db.leases import make_owner, take_lease
from thrifty.errors import DatabaseError
from thrifty.observe.clock_watch import ClockWatch
from thrifty.observe.rollups.roll import Keep, Roller

log = logging.getLogger(__name__)

LEASE = "rollups"
LEASE_S = 10.0
POLL_S = 2.0
"""How far the newest sums are behind, besides the time that the log's writer takes."""
CLEAN_S = 300.0
"""How often hours are settled, and what is kept no longer is deleted."""


async def keep_rollups(
    find_database: Callable[[], Database],
    find_keep: Callable[[], Mapping[str, Any]] = dict,
    clock: ClockWatch | None = None,
) -> None:
    """Add what is new every `POLL_S`, until cancelled. `find_database` gives the open database and
    `find_keep` the fields of `Keep`; both may be others later. After the clock was set ahead nothing
    is settled or deleted for a while (`clock`).
    """
    clock = clock or ClockWatch()
    owner = make_owner()
    away = False
    cleaned_s = 0.0
    thread = ThreadPoolExecutor(1, "rollups", step_back)

    async def work(*told: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(thread, _work, *told)

    try:
        while True:
            due = time.monotonic() - cleaned_s > CLEAN_S and clock.may_delete()
            try:
                await work(find_database(), Keep(**find_keep()), owner, due)
            except Exception as error:
                # A fault of ours must not end all later steps.
                if not away:
                    ours = None if isinstance(error, DatabaseError) else error
                    log.warning("the rollups cannot be kept up to date: %s", error, exc_info=ours)
                away = True
            else:
                if away:
                    log.info("the rollups are kept up to date again")
                away, cleaned_s = False, time.monotonic() if due else cleaned_s
            await asyncio.sleep(POLL_S)
    finally:
        thread.shutdown(wait=False)


def _work(database: Database, keep: Keep, owner: str, clean: bool) -> None:
    """Do what is due, as long as this process holds the lease."""
    roller = Roller(database, keep)
    while roller.has_new():
        if not take_lease(database, LEASE, owner, LEASE_S, force=False):
            return
        roller.roll()
        # What comes meanwhile waits: a step of few rows costs nearly as much as one of many.
        if not roller.is_behind:
            break
    if clean:
        while settle(database, keep.days_s):
            pass
        roller.prune()
