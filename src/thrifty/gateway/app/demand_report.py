"""Writes what is asked of each version to the database, for the autoscaler.

About once a second, and at once when a request begins to be held because its version has no ready
replica: whoever starts replicas should know of it within milliseconds. Nothing on the request path
waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

from thrifty.db import Database
from thrifty.db.demand import encode_figures, remove_demand, save_demand
from thrifty.errors import DatabaseError
from thrifty.gateway.state.fair_queue import INTERACTIVE
from thrifty.gateway.state.table import RoutingTable
from thrifty.gateway.state.version import Version

REPORT_S = 1.0
KEEP_FRESH_S = 3.0
"""Rows that have not changed are written this often; older ones count as stale."""
HELD_PAUSE_S = 0.02
"""Between two reports of held requests, so that a burst of them writes few rows."""

Place = tuple[str, str]
"""Deployment and label."""


class DemandReport:
    """The rows of this worker."""

    def __init__(
        self,
        database: Callable[[], Database],
        table: RoutingTable,
        worker: str,
        measure_work: Callable[[float], Mapping[str, float]],
        on_held: Callable[[], None] = lambda: None,
    ) -> None:
        """`worker` names this process; no other process has had that name. `measure_work` says, for
        a reading of `time.perf_counter`, how many tokens are left to say at each replica. `on_held`
        is called when the database says that requests are held.
        """
        self._measure_work = measure_work
        self._database = database
        self._table = table
        self._worker = worker
        self._on_held = on_held
        self._writes = 0
        self._written: dict[Place, tuple[int, ...]] = {}
        self._written_s = 0.0
        self._held = asyncio.Event()

    def note_held(self, version: Version) -> None:
        """A request has begun to wait at a version without a ready replica. Does not wait."""
        self._held.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S):
                    await self._held.wait()
            urgent = self._held.is_set()
            self._held.clear()
            await self._write(urgent)
            await asyncio.sleep(HELD_PAUSE_S)

    async def forget(self) -> None:
        """Remove this worker's rows, because it ends."""
        with contextlib.suppress(DatabaseError):
            await asyncio.to_thread(remove_demand, self._database(), self._worker)

    async def _write(self, urgent: bool) -> None:
        """Write the figures as they are now. A database that is away is tried again later."""
        # Encoded at once: the figures change while rows are written.
        self._writes += 1
        rows, state = self._encode()
        now_s = time.monotonic()
        stays = state == self._written and not urgent and now_s - self._written_s < KEEP_FRESH_S
        if stays or not rows:
            return
        # The table's reader logs why a database cannot be written to.
        with contextlib.suppress(DatabaseError):
            await asyncio.to_thread(save_demand, self._database(), self._worker, rows)
            self._written, self._written_s = state, now_s
            if urgent:
                self._on_held()

    def _encode(self) -> tuple[dict[Place, str], dict[Place, tuple[int, ...]]]:
        """The row of each version, and what differs between two rows worth writing."""
        rows: dict[Place, str] = {}
        states: dict[Place, tuple[int, ...]] = {}
        work = self._measure_work(time.perf_counter())
        for version in self._table.versions():
            waiting = version.waiting + version.concurrency.queue.waiting(INTERACTIVE)
            # A line of a batch may wait for a version at zero, too, and wakes it.
            held = version.held
            busy = [one for one in version.replicas.values() if one.in_flight]
            left = {one.id: max(work.get(one.id, 0.0), float(one.in_flight)) for one in busy}
            figures = version.demand.read(left, held, 0 if held else waiting)
            figures.writes = self._writes
            place = version.deployment, version.label
            rows[place] = encode_figures(figures)
            states[place] = figures.arrivals, figures.answered, waiting, held, figures.in_flight
        return rows, states
