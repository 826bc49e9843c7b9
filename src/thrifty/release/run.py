"""Carries releases out, in the controller: looks twice a second, decides, and tells gateways.

It holds nothing that is not in the database: a controller that was killed goes on with the releases
it finds, and comes to what it would have decided meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from thrifty.db import Database
from thrifty.db.releases import count_held, read_active, read_held
from thrifty.errors import ControlError, DatabaseError

if TYPE_CHECKING:
    from thrifty.release.watch import Watch

log = logging.getLogger(__name__)

POLL_S = 0.5
HELD_S = 30.0
"""How often conversations are let go that have ended."""


class Releases:
    """All releases of a service. Used on the controller's event loop."""

    def __init__(self, database: Callable[[], Database], notify: Callable[[], None]) -> None:
        """`notify` has gateways read the database now."""
        self._database = database
        self._notify = notify
        self._watches: dict[int, Watch] = {}
        self._held_s = 0.0

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                try:
                    await self._turn()
                except (DatabaseError, sqlite3.Error, OSError):
                    pass  # the control loop says why
                except Exception:
                    # A fault of ours in one turn must not end all later ones.
                    log.exception("a turn of the releases failed")
                await asyncio.sleep(POLL_S)
        finally:
            for watch in self._watches.values():
                watch.close()

    async def _turn(self) -> None:
        database = self._database()
        active = {one.id: one for one in await asyncio.to_thread(read_active, database)}
        for release_id in [one for one in self._watches if one not in active]:
            self._watches.pop(release_id).close()
        for release_id, release in active.items():
            watch = self._watches.get(release_id)
            if watch is None:
                # Only who releases something needs NumPy.
                from thrifty.release.watch import Watch

                watch = self._watches[release_id] = Watch(self._database, release)
            try:
                if await asyncio.to_thread(watch.turn, release):
                    self._notify()
            except ControlError as error:
                log.warning("release %d: %s", release_id, error)
        if time.monotonic() - self._held_s >= HELD_S:
            self._held_s = time.monotonic()
            await asyncio.to_thread(self._refresh_held, database)

    def _refresh_held(self, database: Database) -> None:
        if not count_held(database):
            return
        from thrifty.release.manage import refresh_held

        with database.begin() as connection:
            found = read_held(connection)
        for held in found:
            refresh_held(database, held, time.time())
