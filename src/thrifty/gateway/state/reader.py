"""The thread that keeps the routing table up to date.

It reads one change counter several times a second, and the full state when the counter has moved or
the controller says so.
While the database is away, requests use the last table.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from thrifty.db import Database
from thrifty.db.fleet import FleetState, read_change_count, read_fleet
from thrifty.db.releases import add_held
from thrifty.errors import DatabaseError
from thrifty.gateway.state.table import RoutingTable

log = logging.getLogger(__name__)

POLL_S = 0.2
FULL_READ_S = 2.0
"""Memory and load figures change without the counter; they are read at this interval."""
AWAY_POLL_S = 1.0
FIRST_READ_TIMEOUT_S = 5.0
MIN_REFRESH_S = 0.1
"""Unknown keys may trigger a read of the database; at most one in this interval."""


class TableReader:
    """Reads in its own thread, applies the result on the event loop."""

    def __init__(
        self,
        database: Database,
        table: RoutingTable,
        on_applied: Callable[[], None] = lambda: None,
        on_state: Callable[[bool], None] = lambda up: None,
    ) -> None:
        self._database = database
        self._table = table
        self._on_applied = on_applied
        self._on_state = on_state
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Event()
        self._stopping = False
        self._up = True
        self._change = -1
        self._read_s = 0.0
        self._reports: list[tuple[str, dict[str, float], frozenset[str]]] = []
        self._first_read = asyncio.Event()
        self._refresh: asyncio.Future[None] | None = None
        self._refreshed_s = 0.0
        self._thread = threading.Thread(target=self._run, name="routing-table", daemon=True)

    @property
    def database(self) -> Database:
        """The database that it reads."""
        return self._database

    async def start(self) -> None:
        """Start reading; returns after the first read, or after a bounded wait if it fails."""
        self._thread.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READ_TIMEOUT_S):
                await self._first_read.wait()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join(2.0)

    def notice(self) -> None:
        """Read the database now, without waiting for it."""
        self._wake.set()

    async def refresh(self) -> None:
        """Read the database now, or shortly if a read has just finished."""
        if self._refresh is None:
            self._refresh = self._loop.create_future()
            wait_s = self._refreshed_s + MIN_REFRESH_S - time.monotonic()
            self._loop.call_later(max(0.0, wait_s), self._wake.set)
        try:
            async with asyncio.timeout(1.0):
                await asyncio.shield(self._refresh)
        except TimeoutError:
            return

    def _run(self) -> None:
        while not self._stopping:
            asked = self._wake.is_set()
            self._wake.clear()
            try:
                self._report_held()
                state = self._read(force=asked)
                self._note_state(True, None)
            except Exception as error:
                # Whatever the database holds, this thread must go on: it is how a worker learns
                # of revoked keys.
                state = None
                self._note_state(False, error)
                if self._database.recover():
                    self._change = -1
            if not self._stopping:
                self._loop.call_soon_threadsafe(self._apply, state, asked)
            self._wake.wait(POLL_S if self._up else AWAY_POLL_S)

    def _read(self, *, force: bool) -> FleetState | None:
        now_s = time.monotonic()
        change = read_change_count(self._database)
        if change == self._change and not force and now_s - self._read_s < FULL_READ_S:
            return None
        state = read_fleet(self._database)
        self._change = state.change
        self._read_s = now_s
        return state

    def _report_held(self) -> None:
        """Tell other workers of conversations that this one alone knows to be held."""
        reports, self._reports = self._reports, []
        for deployment, weights, hashes in reports:
            add_held(self._database, deployment, weights, hashes)

    def _apply(self, state: FleetState | None, asked: bool) -> None:
        try:
            if state is not None:
                self._table.apply(state)
                self._reports = [
                    (name, state.held[name].weights, deployment.unreported)
                    for name, deployment in self._table.deployments.items()
                    if deployment.unreported
                ]
                if self._reports:
                    self._wake.set()
                self._on_applied()
        finally:
            self._first_read.set()
            if asked and self._refresh is not None:
                self._refreshed_s = time.monotonic()
                self._refresh.set_result(None)
                self._refresh = None

    def _note_state(self, up: bool, error: Exception | None) -> None:
        if up != self._up:
            self._up = up
            if up:
                log.info("the database is available again")
            else:
                unforeseen = None if isinstance(error, DatabaseError) else error
                log.warning(
                    "the database is unavailable (%s); using the last routing table", error,
                    exc_info=unforeseen,
                )  # fmt: skip
            self._on_state(up)
