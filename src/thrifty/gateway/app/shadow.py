"""Shadow traffic: copies of requests for versions under test, whose answers are discarded.

A version with `shadow: 0.2` gets a copy of a fifth of the requests that other versions answered. A
copy runs only in slots that would be idle, after the original has ended. It has its own id, is
never cached, billed or limited, and does not count in users' statistics. Its row in the request log
names the response that it copies.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from thrifty.gateway.state.call import BATCH, Call, Origin, ParsedRequest, Target
from thrifty.gateway.state.version import Version
from thrifty.http.exchange import InnerExchange
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.fields import Endpoint

MAX_RUNNING = 64
"""Concurrent copies; more are skipped."""
_COPIED = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.RERANK)

Run = Callable[[Call], Coroutine[Any, Any, None]]


class Shadows:
    """Copies ended calls. Used on the event loop only."""

    def __init__(self, run: Run, metrics: GatewayMetrics, rng: random.Random | None = None) -> None:
        self._run = run
        self._metrics = metrics
        self._rng = rng or random.Random()
        self._tasks: set[asyncio.Task[None]] = set()

    def note_ended(self, call: Call) -> None:
        """Copy an ended call if it is sampled and a slot is idle."""
        target = call.target
        if target is None or not target.deployment.shadows or call.parsed is None:
            return
        if call.origin is not Origin.CLIENT or call.outcome.status != 200:
            return
        if call.endpoint not in _COPIED:
            return
        for version in target.deployment.shadows:
            if version is target.version or self._rng.random() >= version.row.shadow:
                continue
            if len(self._tasks) >= MAX_RUNNING or not _is_idle(version):
                self._metrics.shadows.labels(version.deployment, version.label, "left_out").inc()
                continue
            self._start(call, call.parsed, target, version)

    async def stop(self) -> None:
        """Cancel running copies."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, call: Call, parsed: ParsedRequest, target: Target, version: Version) -> None:
        exchange = InnerExchange(call.endpoint.value, call.exchange.body, {})
        shadow = Call(exchange, call.endpoint, Origin.SHADOW)
        shadow.key = call.key
        shadow.priority = BATCH
        shadow.shadow_of = call.response_id.number
        shadow.parsed = ParsedRequest(parsed.body, parsed.stream, parsed.stream_options)
        shadow.target = Target(
            target.deployment, version, version, target.conversation_id, pinned=True
        )
        task = asyncio.get_running_loop().create_task(self._run_shadow(shadow, version))
        exchange.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_shadow(self, shadow: Call, version: Version) -> None:
        await self._run(shadow)
        status = shadow.outcome.status
        result = "answered" if status == 200 else "failed"
        self._metrics.shadows.labels(version.deployment, version.label, result).inc()


def _is_idle(version: Version) -> bool:
    """Whether the version has a free slot that no request waits for. If the number of slots is
    unknown, a replica without any request is required.
    """
    if version.concurrency.capacity is None:
        return any(replica.in_flight == 0 for replica in version.ready)
    return version.concurrency.has_free_slot
