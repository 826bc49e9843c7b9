"""Keeps the rollups up to date while a controller runs.

Of the controllers that share a database one does it, by a lease; that another one takes over early
would do no harm (`db.rollups`). It runs in the controller's process, so that no request waits for
its arithmetic. What is written while no controller runs is added when the next one does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable

from thrifty.db import Database
from thrifty.db.leases import take_lease
from thrifty.errors import DatabaseError
from thrifty.observe.rollups.roll import Keep, Roller

log = logging.getLogger(__name__)

LEASE = "rollups"
LEASE_S = 10.0
POLL_S = 2.0
"""How far the newest sums are behind, besides the time that the log's writer takes."""
PRUNE_S = 600.0


async def keep_rollups(find_database: Callable[[], Database], keep: Keep | None = None) -> None:
    """Add what is new every `POLL_S`, until cancelled. `find_database` gives the open database,
    which may be another one later.
    """
    owner = f"{socket.gethostname()[:64]}/{os.getpid()}/{secrets.token_hex(4)}"
    away = False
    pruned_s = 0.0
    while True:
        due = time.monotonic() - pruned_s > PRUNE_S
        try:
            await asyncio.to_thread(
                _work, Roller(find_database(), keep), find_database(), owner, due
            )
        except Exception as error:
            # A fault of ours must not end all later steps.
            if not away:
                ours = None if isinstance(error, DatabaseError) else error
                log.warning("the rollups cannot be kept up to date: %s", error, exc_info=ours)
            away = True
        else:
            if away:
                log.info("the rollups are kept up to date again")
            away, pruned_s = False, time.monotonic() if due else pruned_s
        await asyncio.sleep(POLL_S)


def _work(roller: Roller, database: Database, owner: str, prune: bool) -> None:
    """Do what is due, as long as this process holds the lease."""
    while roller.has_new() and take_lease(database, LEASE, owner, LEASE_S, force=False):
        roller.roll()
    if prune:
        roller.prune()
