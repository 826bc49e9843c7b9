"""One replica on Ray: an actor is asked for, its engine watched over HTTP, and another actor asked for
when it ends.

Each attempt is an actor of a name of its own, so that what comes late of an earlier one is never
taken for the newest. Whether the engine answers is seen here, not by Ray: a node that is lost is
noticed in a second, and replicas serve on while Ray's head is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from thrifty.db.fleet import ReplicaRow
from thrifty.engines.base import Served
from thrifty.engines.probe import probe_generation, read_server_load
from thrifty.engines.server import KEY_VARIABLE
from thrifty.errors import ThriftyError
from thrifty.fleet.base import Announce, OnChange, SetKey
from thrifty.fleet.idle import wait_idle
from thrifty.fleet.ray_link import Event, RayLink
from thrifty.fleet.ray_settings import Bundle, make_fingerprint
from thrifty.http.client import ConnectFailed, TransportError
from thrifty.types import ReplicaState
from thrifty.version import __version__

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5
PROBE_INTERVAL_S = 0.1
UNHEALTHY_AFTER = 2
KILL_UNHEALTHY_S = 60.0
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
CRASH_LOOP_AFTER = 5
CRASH_LOOP_RETRY_S = 60.0
STABLE_S = 60.0
STOP_GRACE_S = 35.0
END_LIMIT_S = 50.0
"""Until an actor that was told to end has, its engine's grace included."""
NO_ADDRESS = "http://127.0.0.1:1"
MAX_MESSAGE = 500
_HAVE_TRAFFIC = (ReplicaState.READY, ReplicaState.UNHEALTHY)


class RayReplica:
    """See the module's docstring. All of it is used on one event loop."""

    def __init__(
        self,
        replica_id: str,
        key: SetKey,
        served: Served,
        bundle: Bundle,
        link: RayLink,
        on_change: OnChange,
        announce: Announce,
        publish_model: Callable[[Served], Awaitable[str | None]],
        avoid: Callable[[], list[str]],
        on_lost: Callable[[str], None],
        *,
        tls: bool = False,
    ) -> None:
        """`publish_model` returns where nodes find the model, and raises `ThriftyError`. `avoid` names
        nodes that are not to be chosen; `on_lost` is told the node of a replica that was lost. With
        `tls` it shows a certificate of the fleet.
        """
        self._tls = tls
        self.id = replica_id
        self.key = key
        self.served = served
        self.bundle = bundle
        self.start_timeout_s = 600.0
        self.state = ReplicaState.STARTING
        self.message: str | None = None
        self.url = NO_ADDRESS
        self.actor: str | None = None
        """The actor of this attempt."""
        self.node: str | None = None
        self.restarts = 0
        self.ready_after_s = 0.0
        self.load: dict[str, Any] | None = None
        self.provisional = False
        """Whether nothing but an earlier controller's row is known of it."""
        self.retiring = False
        self._had_traffic = False
        self._link = link
        self._on_change = on_change
        self._announce = announce
        self._publish_model = publish_model
        self._avoid = avoid
        self._on_lost = on_lost
        self._changed = asyncio.Event()
        self._ended: tuple[str, bool] | None = None
        """How this attempt ended: the message, and whether it failed by itself."""
        self._task: asyncio.Task[None] | None = None
        self._ends_in_a_row = 0
        self._started_s = time.monotonic()

    # What it is told

    def start(self) -> None:
        """Begin to keep it running, from whatever is known of it."""
        self._task = asyncio.ensure_future(self._keep_running())

    def take_row(self, row: ReplicaRow) -> None:
        """Be as an earlier controller saw it, until more is known; it may be serving."""
        self.provisional = True
        self.state, self.message = ReplicaState(row.state), row.message
        self.url, self.restarts = row.url, row.restarts

    def take_actor(self, found: Event) -> None:
        """Its actor was found."""
        self.provisional = False
        self.actor, self.node = found["name"], found["node_id"]
        if found["url"]:
            self.url = found["url"]
        self._changed.set()

    def take_end(self, message: str, *, failed: bool) -> None:
        """Its actor, or its engine, has ended."""
        self._ended = (message, failed)
        self._changed.set()

    def take_waiting(self, message: str | None) -> None:
        """Why it has no place yet."""
        if self.state is ReplicaState.STARTING:
            self._set(ReplicaState.STARTING, message)

    def note_missing(self) -> None:
        """Ray knows no actor of it any more. What answers all the same serves until it does not."""
        asked = self.provisional or self.actor is not None
        self.provisional = False
        self.actor = None
        if asked and self.state not in _HAVE_TRAFFIC:
            self.take_end("its actor is gone", failed=False)

    def leave(self) -> None:
        """Stop watching, without a word."""
        if self._task is not None:
            self._task.cancel()

    def begin_retiring(self) -> None:
        """Keep it running no longer; gateways are to send it nothing more. `retire` comes next."""
        self.leave()
        # One that an earlier controller was draining may still work on something.
        self._had_traffic |= self.state in (*_HAVE_TRAFFIC, ReplicaState.DRAINING)
        self.retiring = True
        self._set(ReplicaState.DRAINING, self.message)

    async def retire(self) -> None:
        """End it without cutting a request."""
        if self._had_traffic:
            await self._announce()
            await wait_idle(self.id, self.url, lambda: self._ended is None)
        await self._link.ready.wait()
        await self.end(STOP_GRACE_S)

    async def end(self, grace_s: float) -> None:
        """Have its engine end within `grace_s`, and its actor."""
        if self.actor is not None and self._ended is None:
            self._link.send("end", name=self.actor, grace_s=grace_s)
            await self._await_end(grace_s + END_LIMIT_S - STOP_GRACE_S)
        self._set(ReplicaState.STOPPED, None)

    async def _await_end(self, limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while self._ended is None and time.monotonic() < deadline_s:
            await self._wait_change(max(0.0, deadline_s - time.monotonic()))

    def row(self) -> ReplicaRow:
        """How it is now."""
        return ReplicaRow(
            id=self.id, deployment=self.key.deployment, engine=self.served.engine,
            version=self.key.version, revision=self.key.revision, artifact=self.served.artifact,
            url=self.url, state=self.state.value, restarts=self.restarts, message=self.message,
            load=self.load,
        )  # fmt: skip

    # Its life

    async def _keep_running(self) -> None:
        while True:
            if self.actor is None and self.url == NO_ADDRESS:
                await self._launch()
            if self._ended is None:
                await self._watch()
            await self._back_off()

    async def _launch(self) -> None:
        """Ask for an actor, and wait until it has a place, or could not begin."""
        self._started_s = time.monotonic()
        await self._link.ready.wait()
        if self.actor is not None:
            return  # an earlier controller's was found
        try:
            model = await self._publish_model(self.served)
        except ThriftyError as error:
            self._ended = (str(error), True)
            return
        name = f"{self.id}.{secrets.token_hex(4)}"
        avoid = self._avoid()
        key = os.environ.get(KEY_VARIABLE, "")
        self.actor = name
        self._link.send(
            "start", name=name, bundle=dict(self.bundle), avoid=avoid,
            arguments={
                "name": name, "replica": self.id, "served": self.served.to_json().decode(),
                "key": [self.key.deployment, self.key.version, self.key.revision, self.key.cpus],
                "cpus": self.key.cpus, "version": __version__, "model": model,
                "fingerprint": make_fingerprint(key, name), "tls": self._tls,
            },
        )  # fmt: skip
        while self.url == NO_ADDRESS and self._ended is None:
            await self._wait_change(WATCH_INTERVAL_S)
            if avoid and self.url == NO_ADDRESS and not self._avoid():
                # Nodes that it was to avoid may be all that there are.
                self._give_up("asks again, for any node", False)
        self._on_change()

    async def _watch(self) -> None:
        """Stay until the engine has ended, or was lost."""
        began_s, silent, since_s, deep = time.monotonic(), 0, 0.0, False
        while self._ended is None:
            if self.state is ReplicaState.STARTING:
                fault = await self._probe(deep=deep)
                if fault is None and deep:
                    self._become_ready()
                elif self._ended is None and time.monotonic() - began_s > self.start_timeout_s:
                    self._give_up(f"not ready within {self.start_timeout_s:g} s: {fault}", True)
                elif deep and fault is not None:
                    self._set(ReplicaState.STARTING, fault)
                deep = fault is None
                if not deep:
                    await self._wait_change(PROBE_INTERVAL_S)
                continue
            fault, refused = await self._ask()
            if fault is None:
                silent = 0
                if self.state is not ReplicaState.READY:
                    self._become_ready()
            else:
                silent += 1
                since_s = time.monotonic() if silent == 1 else since_s
                if refused:
                    self._set(ReplicaState.UNHEALTHY, f"cannot be reached: {fault}")
                    await self._look_whether_lost()
                elif silent >= UNHEALTHY_AFTER:
                    self._set(ReplicaState.UNHEALTHY, f"does not answer: {fault}")
                if self._ended is None and time.monotonic() - since_s > KILL_UNHEALTHY_S:
                    self._give_up(f"silent for {KILL_UNHEALTHY_S:g} s; killed", False)
            await self._wait_change(WATCH_INTERVAL_S)

    async def _probe(self, *, deep: bool) -> str | None:
        key = os.environ.get(KEY_VARIABLE) or None
        return await probe_generation(self.url, self.served, deep=deep, key=key)

    async def _ask(self) -> tuple[str | None, bool]:
        """Why it does not answer, if it does not, and whether no connection came about."""
        try:
            load = await read_server_load(self.url, os.environ.get(KEY_VARIABLE) or None)
        except ConnectFailed as error:
            return str(error), True
        except (TransportError, OSError, ValueError) as error:
            return str(error), False
        self.load = {
            "running": load.running, "waiting": load.waiting, "kv_usage": load.kv_usage,
            "facts": dict(load.facts),
        }  # fmt: skip
        return None, False

    async def _look_whether_lost(self) -> None:
        """It is lost where its actor does not answer either, or Ray knows none."""
        if self.actor is None:
            if self._link.ready.is_set() and not self.provisional:
                self._ended = ("its node was lost", False)
            return
        alive = await self._link.check(self.actor)
        if alive is False and self._ended is None:
            if self.node is not None:
                self._on_lost(self.node)
            self._give_up("its node was lost", False)

    def _give_up(self, message: str, failed: bool) -> None:
        """End this attempt: whatever is left of it is killed."""
        if self.actor is not None:
            self._link.send("kill", name=self.actor)
        self._ended = (message, failed)

    async def _back_off(self) -> None:
        """Forget the attempt that ended, and wait as long as its end asks for."""
        assert self._ended is not None
        message, failed = self._ended
        served = self.state in _HAVE_TRAFFIC
        lived_s = time.monotonic() - self._started_s
        self._ends_in_a_row = 1 if lived_s > STABLE_S else self._ends_in_a_row + 1
        self.restarts += 1
        self.actor = self.node = None
        self.url, self.load, self.provisional = NO_ADDRESS, None, False
        log.warning("%s: %s", self.id, message)
        pause_s = BACKOFF_S[min(self._ends_in_a_row, len(BACKOFF_S)) - 1]
        if self._ends_in_a_row >= CRASH_LOOP_AFTER:
            self._set(ReplicaState.CRASH_LOOP, message)
            pause_s = CRASH_LOOP_RETRY_S
        else:
            self._set(ReplicaState.FAILED if failed else ReplicaState.BACKOFF, message)
        # What served and ended through no fault of its own is made up for at once.
        if failed or not served or self._ends_in_a_row > 1:
            await asyncio.sleep(pause_s)
        self._ended = None
        self._set(ReplicaState.STARTING, message)

    def _become_ready(self) -> None:
        if self.state is ReplicaState.STARTING:
            self.ready_after_s = time.monotonic() - self._started_s
        self._set(ReplicaState.READY, None)

    async def _wait_change(self, limit_s: float) -> None:
        """Until Ray tells something, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._changed.wait()
        self._changed.clear()

    def _set(self, state: ReplicaState, message: str | None) -> None:
        message = message[:MAX_MESSAGE] if message else None
        if (state, message) == (self.state, self.message):
            return
        log.info("%s: %s %s", self.id, state.value, message or "")
        self.state, self.message = state, message
        self._on_change()
