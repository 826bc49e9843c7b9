"""A replica that somebody else runs: watched, never started or stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from thrifty.db.fleet import ReplicaRow
from thrifty.engines.base import Engine, Served
from thrifty.fleet.local import OnChange
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 2.0
UNHEALTHY_AFTER = 2


class ExternalReplica:
    """Watches one URL."""

    def __init__(
        self, replica_id: str, url: str, served: Served, engine: Engine, on_change: OnChange
    ) -> None:
        self.id = replica_id
        self.served = served
        self.state = ReplicaState.STARTING
        self.message: str | None = None
        self.restarts = 0
        self.ready_once = asyncio.Event()
        self.load: dict[str, Any] = {}
        self.ready_after_s = 0.0
        self._url = url
        self._engine = engine
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None

    def start(self, adopted: ReplicaRow | None = None) -> None:
        """Begin to watch."""
        self._task = asyncio.ensure_future(self._watch())

    async def stop(self, grace_s: float = 0.0) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.state = ReplicaState.STOPPED

    def kill(self) -> None:
        """Nothing to kill."""

    def leave(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()

    def row(self) -> ReplicaRow:
        """How it is now."""
        return ReplicaRow(
            id=self.id,
            deployment=self.served.name,
            engine=self.served.engine,
            version=self.served.version,
            revision=self.served.revision,
            artifact=None,
            url=self._url,
            state=self.state.value,
            message=self.message,
        )

    async def _watch(self) -> None:
        silent = 0
        while True:
            fault = await self._engine.probe(self._url, self.served, deep=False)
            if fault is None:
                silent = 0
                self._set(ReplicaState.READY, None)
                self.ready_once.set()
            else:
                silent += 1
                if silent >= UNHEALTHY_AFTER or self.state is ReplicaState.STARTING:
                    self._set(ReplicaState.UNHEALTHY, fault)
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _set(self, state: ReplicaState, message: str | None) -> None:
        if state is self.state and message == self.message:
            return
        log.info("%s: %s %s", self.id, state.value, message or "")
        self.state, self.message = state, message
        self._on_change()
