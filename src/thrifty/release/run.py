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
from thrifty.db.releases import ReleaseRow, count_held, read_active, read_held
from thrifty.errors import DatabaseError, ThriftyError

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
        self._faults: dict[int, str] = {}
        """What keeps releases from being followed, by their numbers."""
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
        self._faults = {one: fault for one, fault in self._faults.items() if one in active}
        for release in active.values():
            try:
                if await asyncio.to_thread(self._watch(release).turn, release):
                    self._notify()
            except (DatabaseError, sqlite3.Error, OSError):
                raise
            except Exception as error:
                # One release that cannot be followed must not hold up the others.
                self._tell(release.id, error)
            else:
                self._faults.pop(release.id, None)
        if time.monotonic() - self._held_s >= HELD_S:
            self._held_s = time.monotonic()
            await asyncio.to_thread(self._refresh_held, database)

    def _watch(self, release: ReleaseRow) -> Watch:
        watch = self._watches.get(release.id)
        if watch is None:
            # Only who releases something needs NumPy.
            from thrifty.release.watch import Watch

            watch = self._watches[release.id] = Watch(self._database, release)
        return watch

    def _tell(self, release_id: int, error: Exception) -> None:
        """Log a fault of a release when it is another than at the turn before."""
        if self._faults.get(release_id) != str(error):
            self._faults[release_id] = str(error)
            known = isinstance(error, ThriftyError)
            log.warning("release %d: %s", release_id, error, exc_info=None if known else error)

    def _refresh_held(self, database: Database) -> None:
        if not count_held(database):
            return
        from thrifty.release.manage import refresh_held

        with database.begin() as connection:
            found = read_held(connection)
        for held in found:
            refresh_held(database, held, time.time())
