r"""A replica as a supervised process on this machine.

    starting -> ready -> (unhealthy) -> draining -> stopped
        \         \-> backoff -> starting ...        an end that nobody asked for
         \-> failed -> starting ...                  a start that failed for a reason of its own
          \-> backoff ... -> crash_loop              too many ends in a row

Ready means that it generated a token, not that a port is open. A ready replica that is parked stays
loaded, with as little memory as its engine can do with, and is ready again at once. Draining means that gateways send it
nothing more; its process is told to end once it works on nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from thrifty.artifacts import Store
from thrifty.db.fleet import ReplicaRow
from thrifty.engines.base import Engine, ParkingEngine, Served
from thrifty.engines.machine import GPUS_VARIABLE, available_memory_bytes
from thrifty.errors import EngineError, FleetError
from thrifty.fleet.base import Announce, OnChange, SetKey, announce_nothing
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import ManagedProcess, ProcessId, adopt_process, start_process
from thrifty.home import Home
from thrifty.http.client import TransportError
from thrifty.http.process import ADDRESS_IN_USE, KILLED_STATUS
from thrifty.types import ReplicaState
from thrifty.units import format_bytes

log = logging.getLogger(__name__)

PROBE_INTERVAL_S = 0.05
WATCH_INTERVAL_S = 1.0
UNHEALTHY_AFTER = 3
"""Probes in a row without an answer."""
KILL_UNHEALTHY_S = 60.0
STABLE_S = 60.0
"""A replica that lived this long is forgiven its earlier ends."""
BACKOFF_S = (0.2, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
CRASH_LOOP_AFTER = 5
CRASH_LOOP_RETRY_S = 60.0
STOP_GRACE_S = 35.0
"""The server of a replica ends what it works on within 30 s."""
IDLE_POLL_S = 0.25
DRAIN_LIMIT_S = 3600.0
"""A replica that is drained for another one may end its requests for so long."""
RECYCLE_LIMIT_S = 600.0
"""One that is past its memory limit has less time: nothing takes its place before it has ended."""
RECYCLE_FREE_SHARE = 0.1
"""... and none once the machine has less free memory than this share of the limit."""
RECYCLE_ANNOUNCE_LIMIT_S = 10.0
"""A replica that grows does not wait longer for a database that is away."""
_HAVE_TRAFFIC = (ReplicaState.READY, ReplicaState.UNHEALTHY)
CPUS_VARIABLE = "THRIFTY_REPLICA_CPUS"
"""How many cores the set of a replica gives each copy, for a later controller to read."""


class LocalReplica:
    """Keeps one replica running until it is told to stop."""

    def __init__(
        self,
        replica_id: str,
        served: Served,
        engine: Engine,
        *,
        home: Home,
        store: Store,
        cores: Sequence[int],
        memory_share: float,
        memory_limit: int | None,
        start_timeout_s: float,
        on_change: OnChange,
        announce: Announce = announce_nothing,
        set_cpus: int = 0,
        gpus: Sequence[str] = (),
    ) -> None:
        """`set_cpus` is the `cpus` of its `SetKey`, and `memory_share` concerns the memory of `gpus`
        where it has some.
        """
        self.id = replica_id
        self.served = served
        self.state = ReplicaState.STARTING
        self.message: str | None = None
        self.restarts = 0
        self.ready_once = asyncio.Event()
        """Set when it was ready for the first time, or is judged to be in a crash loop."""
        self.load: dict[str, Any] = {}
        self.started_s = 0.0
        self.ready_after_s = 0.0
        self._engine = engine
        self._home = home
        self._store = store
        self._cores = list(cores)
        self.gpus = tuple(gpus)
        """The GPUs that it runs on, or will, as CUDA_VISIBLE_DEVICES names them; none: as many as it
        finds."""
        self._memory_share = memory_share
        self._memory_limit = memory_limit
        self._start_timeout_s = start_timeout_s
        self._on_change = on_change
        self._announce = announce
        self._set_cpus = set_cpus
        self._url = ""
        self._port = 0
        """Its port; kept when it is started anew, so that gateways find it again even while they
        cannot read of it."""
        self._process: ManagedProcess | None = None
        self._memory_bytes = 0
        self._ends_in_a_row = 0
        self._stopping = False
        self._failed = False
        """Whether its last start failed for a reason that another start would probably meet again:
        its process gave one up by itself."""
        self._had_traffic = True
        """Whether requests may have reached it when it began to drain."""
        self._task: asyncio.Task[None] | None = None
        self._parking: asyncio.Task[None] | None = None

    @property
    def cores(self) -> list[int]:
        """The cores it runs on, or will."""
        return list(self._cores)

    @property
    def key(self) -> SetKey:
        """The set it belongs to."""
        served = self.served
        return SetKey(served.name, served.version, served.revision, self._set_cpus)

    def count_requests(self) -> int:
        """How many requests it had when it was asked last."""
        return int(self.load.get("running", 0)) + int(self.load.get("waiting", 0))

    def set_bounds(self, memory_limit: int | None, start_timeout_s: float) -> None:
        """Change what needs no new process."""
        self._memory_limit = memory_limit
        self._start_timeout_s = start_timeout_s

    def start(self, adopted: ReplicaRow | None = None) -> None:
        """Begin to keep it running; `adopted` is a row of a process that may run already."""
        found = adopted is not None and self._take_over(adopted)
        self._task = asyncio.ensure_future(self._keep_running(found))

    def take_leaving(self, row: ReplicaRow) -> None:
        """Take over a process that an earlier controller was draining; `retire` comes next."""
        self._take_over(row)
        self.state = ReplicaState.DRAINING

    def park(self) -> None:
        """Keep it loaded and idle, if it is ready: gateways are told to send it nothing more, what
        it works on ends, and it gives back memory.
        """
        if self.state is ReplicaState.READY and self._engine.traits.parks:
            self._set_state(ReplicaState.PARKED)
            self._parking = asyncio.ensure_future(self._park())

    def unpark(self) -> None:
        """Make a parked replica ready again. It takes its memory by itself."""
        if self.state is ReplicaState.PARKED:
            self._end_parking()
            self._set_state(ReplicaState.READY)

    async def _park(self) -> None:
        process = self._process
        assert process is not None
        await self._announce()
        await self._wait_idle(process, DRAIN_LIMIT_S)
        with contextlib.suppress(TransportError, OSError):
            await cast(ParkingEngine, self._engine).park(self._url)
        before, self._memory_bytes = self._memory_bytes, process.memory_bytes()
        log.info(
            "%s: parked, with %s of %s", self.id, format_bytes(self._memory_bytes),
            format_bytes(before),
        )  # fmt: skip

    def _end_parking(self) -> bool:
        """Stop to park it, and say whether that was still going on."""
        parking, self._parking = self._parking, None
        return parking is not None and parking.cancel()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Drain and end it, for good, within `grace_s`."""
        self.begin_retiring()
        await self._await_task()
        if self._process is not None:
            await self._process.stop(grace_s)
        self._set_state(ReplicaState.STOPPED)

    def begin_retiring(self) -> None:
        """Keep it running no longer; gateways are to send it nothing more. `retire` comes next."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
        parking = self._end_parking()
        if self.state is not ReplicaState.DRAINING:
            self._had_traffic = parking or self.state in _HAVE_TRAFFIC
            self._set_state(ReplicaState.DRAINING)

    async def retire(self, limit_s: float = DRAIN_LIMIT_S) -> None:
        """End it for good, without cutting a request: gateways learn of it first, and its process
        is told to end once it works on nothing, or after `limit_s`.
        """
        self.begin_retiring()
        await self._await_task()
        if self._had_traffic and self._process is not None and self._process.alive:
            await self._announce()
            await self._wait_idle(self._process, limit_s)
        if self._process is not None:
            await self._process.stop(STOP_GRACE_S)
        self._set_state(ReplicaState.STOPPED)

    async def _await_task(self) -> None:
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _wait_idle(
        self, process: ManagedProcess, limit_s: float, least_free_bytes: float = 0.0
    ) -> None:
        """Wait until it works on nothing, twice in a row, or does not say; for `limit_s` at most, and
        while the machine has `least_free_bytes` of memory free.
        """
        deadline_s = time.monotonic() + limit_s
        idle = silent = 0
        while process.alive and idle < 2 and silent < UNHEALTHY_AFTER:
            try:
                load = await self._engine.read_load(self._url)
                idle = idle + 1 if load.running + load.waiting == 0 else 0
                silent = 0
            except (TransportError, OSError, ValueError):
                silent += 1
            if time.monotonic() > deadline_s:
                log.warning("%s: still busy after %g s; ended", self.id, limit_s)
                return
            if least_free_bytes and available_memory_bytes() < least_free_bytes:
                log.warning("%s: the machine's memory is nearly used up; ended", self.id)
                return
            await asyncio.sleep(IDLE_POLL_S)

    def kill(self) -> None:
        """End its process at once."""
        if self._process is not None:
            self._process.kill()

    def leave(self) -> None:
        """Stop watching; the process goes on for the next controller."""
        self._end_parking()
        if self._task is not None:
            self._task.cancel()

    def row(self) -> ReplicaRow:
        """How it is now."""
        process = self._process if self._process is not None and self._process.alive else None
        return ReplicaRow(
            id=self.id,
            deployment=self.served.name,
            engine=self.served.engine,
            version=self.served.version,
            revision=self.served.revision,
            artifact=self.served.artifact,
            url=self._url or "http://127.0.0.1:1",
            state=self.state.value,
            pid=process.pid if process else None,
            process_created_s=process.ident.created_s if process else None,
            memory_bytes=self._memory_bytes if process else None,
            restarts=self.restarts,
            message=self.message,
            load=self.load,
        )

    async def _keep_running(self, adopted: bool) -> None:
        if adopted:
            if await self._confirm():
                await self._watch()
            if not self._stopping:
                await self._back_off()
        while not self._stopping:
            if await self._launch():
                await self._watch()
            if not self._stopping:
                await self._back_off()

    def _take_over(self, row: ReplicaRow) -> bool:
        """Take over a running process, if it is this very replica. It is as its row says until it
        has answered: it may be serving.
        """
        if row.pid is None or row.process_created_s is None or row.revision != self.served.revision:
            return False
        ident = ProcessId(row.pid, row.process_created_s)
        process = adopt_process(ident, self._home.log_of(self.id))
        if process is None:
            return False
        self._process, self._url, self.restarts = process, row.url, row.restarts
        self._port = urlsplit(row.url).port or 0
        self._memory_bytes = row.memory_bytes or 0
        self.state, self.message = ReplicaState(row.state), row.message
        self.started_s = time.monotonic()
        log.info("%s: adopted pid %d", self.id, process.pid)
        return True

    async def _confirm(self) -> bool:
        """Whether a process that was taken over answers, or does once it has loaded its model."""
        process = self._process
        assert process is not None
        if self.state is ReplicaState.STARTING:
            return await self._wait_ready(process)
        if self.state is ReplicaState.PARKED:
            return True  # a probe would have it take its memory again
        if await self._engine.probe(self._url, self.served, deep=True) is not None:
            await process.stop(1.0)
            return False
        self._become_ready()
        return True

    async def _launch(self) -> bool:
        """Start the process and wait until it is ready; False if it did not get there."""
        self._set_state(ReplicaState.STARTING)
        self.started_s = time.monotonic()
        self._failed = True
        lease = None
        try:
            port = find_free_port(self._port)
            launch = self._engine.launch(
                self.served, self._store, port, self._cores, self._memory_share
            )
            if self.served.artifact is not None:
                lease = self._store.lease(self.served.artifact)
            self._process = start_process(
                launch.command,
                role="replica",
                process_id=self.id,
                home=self._home.root,
                log_path=self._home.log_of(self.id),
                environment={
                    **launch.environment,
                    CPUS_VARIABLE: str(self._set_cpus),
                    **({GPUS_VARIABLE: ",".join(self.gpus)} if self.gpus else {}),
                },
                cores=self._cores,
                inherit=() if lease is None else (lease,),
            )
        except (EngineError, FleetError) as error:
            self.message = str(error)
            return False
        except Exception as error:
            # Whatever an engine raises, the replica must not stay in `starting` for ever.
            log.exception("%s cannot be started", self.id)
            self.message = f"{type(error).__name__}: {error}"
            return False
        finally:
            if lease is not None:
                os.close(lease)
        self._port, self._url = port, f"http://127.0.0.1:{port}"
        self._on_change()
        return await self._wait_ready(self._process)

    async def _wait_ready(self, process: ManagedProcess) -> bool:
        deadline_s = time.monotonic() + self._start_timeout_s
        measure_s = 0.0
        deep = False
        while process.alive:
            fault = await self._engine.probe(self._url, self.served, deep=deep)
            if fault is None and deep:
                self._become_ready()
                return True
            if deep:
                self._tell_fault(fault)
            pause_s = WATCH_INTERVAL_S if deep else PROBE_INTERVAL_S
            deep = fault is None
            if time.monotonic() > deadline_s:
                self.message = f"not ready within {self._start_timeout_s:g} s: {fault}"
                self._failed = True
                await process.stop(1.0)
                return False
            if time.monotonic() > measure_s:
                measure_s = time.monotonic() + WATCH_INTERVAL_S
                self._memory_bytes = process.memory_bytes()
            if not deep:
                await asyncio.sleep(pause_s)
        self.message = self._describe_end(process)
        status = process.exit_status or 0
        self._failed = 0 < status < KILLED_STATUS and status != ADDRESS_IN_USE
        log.error("%s: %s", self.id, self.message)
        return False

    def _tell_fault(self, fault: str | None) -> None:
        """Show why a server that is up does not generate: it may do so until the time is over."""
        if fault is not None and fault != self.message:
            self.message = fault
            log.warning("%s: not ready yet: %s", self.id, fault)
            self._on_change()

    async def _watch(self) -> None:
        """Stay until the process has ended."""
        process = self._process
        assert process is not None
        ended = asyncio.ensure_future(process.wait())
        silent = 0
        unhealthy_since_s = 0.0
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=WATCH_INTERVAL_S)
                if ended.done():
                    break
                self._memory_bytes = process.memory_bytes()
                if self.state is ReplicaState.PARKED:
                    continue  # it is left alone: a question would wake its memory
                if self._memory_limit is not None and self._memory_bytes > self._memory_limit:
                    await self._recycle(process)
                    continue
                try:
                    load = await self._engine.read_load(self._url)
                    self.load = {
                        "running": load.running, "waiting": load.waiting,
                        "kv_usage": load.kv_usage, "facts": dict(load.facts),
                    }  # fmt: skip
                    silent = 0
                    if self.state is ReplicaState.UNHEALTHY:
                        self._become_ready()
                except (TransportError, OSError, ValueError) as error:
                    silent += 1
                    if silent == UNHEALTHY_AFTER:
                        unhealthy_since_s = time.monotonic()
                        self.message = f"does not answer: {error}"
                        self._set_state(ReplicaState.UNHEALTHY)
                    elif silent > UNHEALTHY_AFTER and (
                        time.monotonic() - unhealthy_since_s > KILL_UNHEALTHY_S
                    ):
                        log.error("%s: silent for %g s; killed", self.id, KILL_UNHEALTHY_S)
                        process.kill()
        finally:
            ended.cancel()
        if not self._stopping:
            self.message = self._describe_end(process)
            log.warning("%s: %s", self.id, self.message)

    async def _recycle(self, process: ManagedProcess) -> None:
        """Drain and end a process that has grown past its limit; a fresh one follows."""
        self.message = (
            f"{self._memory_bytes} bytes of memory, more than its limit of {self._memory_limit}"
        )
        log.warning("%s: %s; it is drained and started anew", self.id, self.message)
        self._set_state(ReplicaState.DRAINING)
        # What gateways sent before they learned of it is answered.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECYCLE_ANNOUNCE_LIMIT_S):
                await self._announce()
        least_free_bytes = RECYCLE_FREE_SHARE * (self._memory_limit or 0)
        await self._wait_idle(process, RECYCLE_LIMIT_S, least_free_bytes)
        await process.stop(STOP_GRACE_S)

    async def _back_off(self) -> None:
        lived_s = time.monotonic() - self.started_s
        self._ends_in_a_row = 1 if lived_s > STABLE_S else self._ends_in_a_row + 1
        self.restarts += 1
        self._memory_bytes = 0
        if self._ends_in_a_row >= CRASH_LOOP_AFTER:
            self._set_state(ReplicaState.CRASH_LOOP)
            log.error("%s: ended %d times in a row: %s", self.id, self._ends_in_a_row, self.message)
            self.ready_once.set()
            await asyncio.sleep(CRASH_LOOP_RETRY_S)
            return
        self._set_state(ReplicaState.FAILED if self._failed else ReplicaState.BACKOFF)
        await asyncio.sleep(BACKOFF_S[min(self._ends_in_a_row, len(BACKOFF_S)) - 1])

    def _become_ready(self) -> None:
        self.message = None
        self._failed = False
        self.ready_after_s = time.monotonic() - self.started_s
        self._set_state(ReplicaState.READY)
        self.ready_once.set()

    def _set_state(self, state: ReplicaState) -> None:
        if state is not self.state:
            log.info("%s: %s", self.id, state.value)
        self.state = state
        self._on_change()

    @staticmethod
    def _describe_end(process: ManagedProcess) -> str:
        status = process.exit_status
        if status is None:
            how = "ended"
        elif status < 0:
            how = f"was killed by signal {-status}"
        else:
            how = f"ended with status {status}"
        tail = process.read_log_end()
        return f"the process {how}" + (f": {tail}" if tail and (status or 0) >= 0 else "")
