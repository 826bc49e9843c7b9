"""Hedged requests: if a replica has not begun to answer in time, a second one is asked. The first
answer wins, and the other request is cancelled.

Hedging cuts the longest waits if replicas stall occasionally, and costs nothing if none does.
Hedges are paid from the retry budget, so that a slow fleet does not get twice its load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from thrifty.gateway.cache.single_flight import SingleFlight
from thrifty.gateway.forwarding.failures import RETRIABLE_STATUSES
from thrifty.gateway.forwarding.retry_budget import RetryBudget
from thrifty.gateway.state.call import Call
from thrifty.gateway.state.replica import Replica
from thrifty.gateway.state.router import Outstanding
from thrifty.gateway.state.version import Version
from thrifty.http.client import Answer, TransportError
from thrifty.observe.metrics import GatewayMetrics

AnyReplica = TypeVar("AnyReplica")
OpenOn = Callable[[AnyReplica], Awaitable[Answer]]
Send = Callable[[Call, Replica, bytes, SingleFlight | None, list[Answer]], Awaitable[Answer]]
Pick = Callable[[Call, Version, list[Replica]], Replica]


class Hedger:
    """Sends calls with a hedge, and counts the second replica's load.

    `send` sends a body to a replica and adds the opened answer to a list, `pick` chooses a replica
    for a call, and `note_failure` is called with a second replica that failed.
    """

    def __init__(
        self,
        send: Send,
        pick: Pick,
        note_failure: Callable[[Version, Replica], None],
        budget: RetryBudget,
        metrics: GatewayMetrics,
    ) -> None:
        self._send = send
        self._pick = pick
        self._note_failure = note_failure
        self._budget = budget
        self._metrics = metrics

    async def open(
        self, call: Call, first: Replica, body: bytes, flight: SingleFlight | None, after_s: float
    ) -> Answer:
        """Like `send` to `first`, but with a second replica if the first does not begin within
        `after_s`. The replica that answers is assigned to the call.
        """
        version, delivery = call.placed.version, call.delivery
        sent: list[Answer] = []
        second: tuple[Replica, Outstanding] | None = None

        async def open_on(replica: Replica) -> Answer:
            answer = await self._send(call, replica, body, flight, sent)
            if answer.status == 200:
                await answer.wait_body()
            return answer

        def choose_other() -> Replica | None:
            nonlocal second
            if not version.concurrency.has_free_slot:
                return None
            others = [r for r in version.candidates({first.id}) if r.id != first.id]
            if not others or not self._budget.spend():
                return None
            other = self._pick(call, version, others)
            now_s = time.perf_counter()
            second = other, version.router.begin(other, delivery.routed, now_s)
            version.note_begun(other, now_s)
            self._metrics.hedges.labels(version.deployment).inc()
            return other

        winner = first
        try:
            answer, winner = await open_hedged(
                open_on, first, choose_other, after_s, lambda a: a.status not in RETRIABLE_STATUSES
            )
        except TransportError:
            if second is not None and not call.expired and not call.exchange.disconnected:
                self._note_failure(version, second[0])
            raise
        finally:
            # Only one of them works for the call from here on: the other's load ends.
            if second is not None:
                loser, load = second
                if winner is loser:
                    loser, load = first, delivery.load or load
                    delivery.load = second[1]
                    self._metrics.hedges_won.labels(version.deployment).inc()
                    delivery.replica = winner
                    if flight is not None:
                        flight.replica = winner.id
                ended_s = time.perf_counter()
                load.end(ended_s)
                version.note_ended(loser, load.began_s, ended_s)
                version.health.note_unknown(loser.id)
        return answer


async def open_hedged(
    open_on: OpenOn[AnyReplica],
    first: AnyReplica,
    choose_other: Callable[[], AnyReplica | None],
    after_s: float,
    is_good: Callable[[Answer], bool],
) -> tuple[Answer, AnyReplica]:
    """An answer that has begun, and the replica that gives it.

    `open_on` sends the request to a replica. It is called for `first`, and after `after_s` for the
    result of `choose_other`, unless that is None. A bad answer wins only if the other request ends
    no better. Raises the last request's error if none was answered.
    """
    running: dict[asyncio.Future[Answer], AnyReplica] = {}
    running[asyncio.ensure_future(open_on(first))] = first
    bad: tuple[Answer, AnyReplica] | None = None
    failure: TransportError | None = None
    timeout_s: float | None = after_s
    try:
        while running:
            done, _ = await asyncio.wait(
                running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                timeout_s = None
                other = choose_other()
                if other is not None:
                    running[asyncio.ensure_future(open_on(other))] = other
                continue
            # If the first one fails before `after_s`, the caller retries.
            for task in done:
                replica = running.pop(task)
                try:
                    answer = task.result()
                except TransportError as error:
                    failure = error
                    continue
                if is_good(answer):
                    if bad is not None:
                        bad[0].abort()
                    return answer, replica
                if bad is not None:
                    bad[0].abort()
                bad = (answer, replica)
        if bad is not None:
            return bad
        assert failure is not None
        raise failure
    finally:
        for task in running:
            _cancel(task)


def _cancel(task: asyncio.Future[Answer]) -> None:
    """Cancel a request; if it has just been answered, abort the answer."""
    if task.cancel():
        return
    if not task.cancelled() and task.exception() is None:
        task.result().abort()
