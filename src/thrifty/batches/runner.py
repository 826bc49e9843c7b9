"""Which gateway worker runs batches, and which batches there are.

One worker of a service runs all batches, so that used and free capacity is counted in one place. A
lease in the database, renewed while there is work, determines the worker. A lock on a file beside
the results guarantees it, however long a process was suspended. The lock ends with its process:
on the same files, the next worker takes over within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from thrifty.batches.dispatch import TICK_S, Dispatcher
from thrifty.batches.job import CANCELLED, EXPIRED, REVOKED, Job
from thrifty.batches.loads import POLL_S as LOAD_POLL_S
from thrifty.batches.loads import LoadWatch
from thrifty.batches.settings import BatchSettings
from thrifty.batches.storage import Storage
from thrifty.db import Database
from thrifty.db.batches import (
    LEASE,
    BatchCounts,
    BatchRow,
    BatchStatus,
    LeaseLost,
    find_known_files,
    read_active_batches,
    save_counts,
    take_expired_files,
)
from thrifty.db.fleet import read_gateways
from thrifty.db.keys import Key, Role
from thrifty.db.leases import make_owner, read_owner, release_lease, take_lease
from thrifty.errors import BadDataError, DatabaseError
from thrifty.gateway.state.table import RoutingTable
from thrifty.observe.clock_watch import ClockWatch
from thrifty.observe.metrics import GatewayMetrics

log = logging.getLogger(__name__)

POLL_S = 0.5
LEASE_S = 10.0
"""How long a lease is valid without renewal. On the same files no worker waits for it."""
RETRY_S = 1.0
MAX_JOBS = 32
"""Batches that run concurrently; more wait their turn."""
SWEEP_S = 60.0
ORPHAN_SWEEP_S = 3600.0
RETRY_JOB_S = 5.0
"""A batch that could not be run is retried after this long."""
REVOKED_S = 2.0
THREADS = 4


class BatchRunner:
    """Runs batches while this worker holds the lease. `start` it, then `stop` it."""

    def __init__(
        self,
        *,
        database: Database,
        storage: Storage,
        table: RoutingTable,
        dispatcher: Dispatcher,
        metrics: GatewayMetrics,
        settings: BatchSettings,
        max_line_bytes: int,
    ) -> None:
        self._database = database
        self._storage = storage
        self._table = table
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._settings = settings
        self._max_line_bytes = max_line_bytes
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="batches")
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="batch-lease")
        """Renews the lease, even while all other threads are busy."""
        self._clock = ClockWatch()
        self._wake = asyncio.Event()
        self._jobs: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._saved: dict[str, BatchCounts] = {}
        self._lock: int | None = None
        self._owner = ""
        self._up = True
        self._stopping = False
        self._ended: set[str] = set()
        """Ended batches that the database may still list as active."""
        self._retry_at_s: dict[str, float] = {}
        """When batches that could not be run are retried."""
        self._keyless_s: dict[str, float] = {}
        """Since when the keys of batches have been missing."""
        self._task: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._others = False
        """Whether there are other gateway workers."""
        self._swept_s = time.monotonic()
        self._orphans_swept_s = time.monotonic()

    def start(self) -> None:
        """Start looking for batches."""
        self._task = asyncio.ensure_future(self._run())
        self._ticking = asyncio.ensure_future(self._tick())
        self._watching = asyncio.ensure_future(self._watch_loads())

    def wake(self) -> None:
        """Look for batches now."""
        self._wake.set()

    async def stop(self) -> None:
        """Withdraw all lines, write finished records, and leave the rest to the next worker."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self._drop_jobs()
        for task in (self._ticking, self._watching):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._dispatcher.tick()
        with contextlib.suppress(DatabaseError):
            await self._watch(self._release)
        self._watcher.shutdown()
        self._threads.shutdown()

    async def on_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function that may block."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a database function, and repeat it while the database is away.

        Raises `LeaseLost`, and `BadDataError` if another attempt would fail as well.
        """
        while True:
            try:
                return await self.on_thread(function, self._database, *arguments)
            except (LeaseLost, BadDataError):
                raise
            except DatabaseError as error:
                self._note_state(False, error)
                await asyncio.sleep(RETRY_S)

    async def _watch(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._watcher, function, *arguments)

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                await self._update_jobs()
                self._note_state(True, None)
            except LeaseLost as error:
                log.warning("%s; leaving its batches to that process", error)
                await self._drop_jobs()
                await self._watch(self._unlock)
            except DatabaseError as error:
                # Lines continue: the lock on the folder protects their results.
                self._note_state(False, error)
                self._database.recover()
            except OSError as error:
                log.error("batches cannot be run: %s", error)
            except Exception:
                log.exception("cannot look for batches")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S if self._up else RETRY_S):
                    await self._wake.wait()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._dispatcher.tick()

    async def _watch_loads(self) -> None:
        """Track what other workers send to replicas with lines."""
        watch = LoadWatch()
        try:
            while True:
                await asyncio.sleep(LOAD_POLL_S)
                busy = self._dispatcher.find_busy_replicas() if self._others else []
                self._dispatcher.other_workers = await watch.poll(busy) if busy else {}
        finally:
            watch.close()

    async def _update_jobs(self) -> None:
        """Start, stop and save batches once."""
        rows: list[BatchRow] = await self._watch(self._find_work)
        now_s = time.monotonic()
        for row in rows:
            known = self._jobs.get(row.id)
            if known is not None:
                if row.status is BatchStatus.CANCELLING:
                    known[0].stop(CANCELLED)
            elif row.id not in self._ended and self._retry_at_s.get(row.id, 0.0) <= now_s:
                self._start_job(row)
        self._ended &= {row.id for row in rows}
        for job, _ in self._jobs.values():
            if job.row.expires_s < time.time():
                job.stop(EXPIRED)
            elif self._is_revoked(job.row, now_s):
                job.stop(REVOKED)
        for deployment, count in self._dispatcher.count_lines().items():
            self._metrics.batch_lines_in_flight.labels(deployment).set(count)
        self._metrics.batches_running.set(len(self._jobs))
        changed = {
            batch_id: job.counts
            for batch_id, (job, _) in self._jobs.items()
            if job.counts.total and job.counts != self._saved.get(batch_id)
        }
        if changed:
            await self._watch(save_counts, self._database, self._owner, changed)
            self._saved |= changed
        await self._sweep()

    def _find_work(self) -> list[BatchRow]:
        """Runs on a thread: the batches that this worker is to run."""
        rows = read_active_batches(self._database, MAX_JOBS)
        if not rows and not self._jobs:
            self._release()
            return []
        if self._lock is None and not self._acquire():
            return []
        if not take_lease(self._database, LEASE, self._owner, LEASE_S, force=False):
            raise LeaseLost("another process runs batches now")
        self._others = len(read_gateways(self._database)) > 1
        # Read again: batches read before we held the lease may have ended in the meantime.
        return read_active_batches(self._database, MAX_JOBS)

    def _acquire(self) -> bool:
        """Take the lock on the folder and the lease; returns whether this worker has both."""
        path = self._storage.folder / ".runner"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        try:
            folder = os.read(descriptor, 64).decode("ascii", "replace")
            if not folder:
                folder = secrets.token_hex(8)
                os.write(descriptor, folder.encode())
            owner = f"{folder}/{make_owner()}"
            # The holder of the lease on these files held this lock, so it has ended.
            before = read_owner(self._database, LEASE) or ""
            ours = before.startswith(f"{folder}/")
            if not take_lease(self._database, LEASE, owner, LEASE_S, force=ours):
                os.close(descriptor)
                return False
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        self._lock, self._owner = descriptor, owner
        log.info("this worker now runs the batches")
        return True

    def _release(self) -> None:
        if self._lock is not None:
            try:
                release_lease(self._database, LEASE, self._owner)
            finally:
                self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # jobs

    def _start_job(self, row: BatchRow) -> None:
        job = Job(
            row,
            self._find_key(row) or _make_substitute_key(row),
            owner=self._owner,
            storage=self._storage,
            dispatcher=self._dispatcher,
            do=self.do,
            on_thread=self.on_thread,
            max_lines=self._settings.max_lines,
            max_line_bytes=self._max_line_bytes,
            keep_s=self._settings.keep_s,
        )
        task = asyncio.ensure_future(job.run())
        self._jobs[row.id] = (job, task)
        task.add_done_callback(lambda ended: self._forget(row.id, ended))

    def _forget(self, batch_id: str, task: asyncio.Task[None]) -> None:
        self._jobs.pop(batch_id, None)
        self._saved.pop(batch_id, None)
        self._metrics.batches_running.set(len(self._jobs))
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            # It is still active in the database and will be started again later.
            log.error("%s: stopped: %s", batch_id, error, exc_info=error)
            self._retry_at_s[batch_id] = time.monotonic() + RETRY_JOB_S
        else:
            self._ended.add(batch_id)
            self._retry_at_s.pop(batch_id, None)
            self._keyless_s.pop(batch_id, None)
            self.wake()

    async def _drop_jobs(self) -> None:
        tasks = [task for _, task in self._jobs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _find_key(self, row: BatchRow) -> Key | None:
        known = chain(self._table.keys.values(), self._table.sign_ins.values())
        key = next((one for one in known if one.id == row.key_id), None)
        expired = key is not None and key.expires_s is not None and key.expires_s <= time.time()
        return None if expired else key

    def _is_revoked(self, row: BatchRow, now_s: float) -> bool:
        """Whether its key has been gone for a while; this worker may not know a new key yet."""
        if row.key_id is None or not self._table.loaded or self._find_key(row) is not None:
            self._keyless_s.pop(row.id, None)
            return False
        return now_s - self._keyless_s.setdefault(row.id, now_s) > REVOKED_S

    # cleanup

    async def _sweep(self) -> None:
        now_s = time.monotonic()
        if now_s - self._swept_s > SWEEP_S:
            self._swept_s = now_s
            await self.on_thread(self._remove_expired)
        if now_s - self._orphans_swept_s > ORPHAN_SWEEP_S:
            self._orphans_swept_s = now_s
            await self.on_thread(self._storage.sweep, self._find_needed)

    def _remove_expired(self) -> None:
        if not self._clock.may_delete():
            return
        for file_id in take_expired_files(self._database, time.time()):
            self._storage.remove(file_id)

    def _find_needed(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that a row or an active batch needs."""
        needed = find_known_files(self._database, names)
        for row in read_active_batches(self._database, 1_000_000):
            suffix = row.id.removeprefix("batch_")
            needed |= {f"file-{suffix}-output", f"file-{suffix}-errors"}
        return needed

    def _note_state(self, up: bool, error: DatabaseError | None) -> None:
        if up != self._up:
            self._up = up
            if up:
                log.info("batches: the database is available again")
            else:
                log.warning(
                    "batches: the database is unavailable (%s); lines in memory continue", error
                )


def _make_substitute_key(row: BatchRow) -> Key | None:
    """A substitute for a key that is not in the table; it only carries the tenant."""
    if row.key_id is None:
        return None
    return Key(row.key_id, "", Role.USER, row.tenant, "", "", 0.0, None)
