"""Concurrency limits: a request takes a slot before a replica is chosen and returns it after
its last byte. Requests that find no free slot wait in a fair queue.

The number of slots per replica comes from `replicas.slots` or from the engine. If neither sets it,
concurrency is unlimited: there is no queue and no cost.

Some slots are reserved. Batch requests never use the last tenth. While several tenants are active,
tenants that hold at least their fair share leave some slots free too. A tenant that sends few
requests therefore rarely waits, not even for one long answer to end.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from thrifty.gateway.state.fair_queue import BATCH, INTERACTIVE, FairQueue, QueuedRequest
from thrifty.openai.errors import OVERLOADED, SERVER, WireError, unavailable

BATCH_RESERVE = 10
"""One slot in this many is reserved from batch requests."""
MIN_RESERVABLE = 4
"""With fewer slots than this, none is reserved for other tenants. With more, the reserve is the
square root of their number, because the number in use fluctuates by about that much (the
square-root staffing rule, Halfin and Whitt 1981)."""
ACTIVE_S = 30.0
"""A tenant counts as active for this long after its last request."""
DEADLINE_CODES = frozenset({"deadline_unreachable", "deadline_exceeded"})
WEIGHT = 0.1
"""The weight of one request in the moving averages of times."""


class Grant(Protocol):
    """What a queued request waits for: an `asyncio.Future`, or what a simulation has in its
    place.
    """

    def done(self) -> bool:
        """Whether it has a slot or was refused."""
        ...

    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        ...

    def exception(self) -> BaseException | None:
        """Why it was refused, once it is done."""
        ...

    def set_result(self, result: None, /) -> None:
        """Give it a slot."""
        ...

    def set_exception(self, exception: Exception, /) -> None:
        """Refuse it."""
        ...


class NoReplica(Exception):
    """The version has no ready replica left, and another version can answer."""


@dataclass(slots=True)
class _Tenant:
    held: int = 0
    seen_s: float = 0.0


class ConcurrencyLimiter:
    """The slots of one version in this worker, and the queue for them."""

    def __init__(self, name: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.name = name
        self.capacity: int | None = None
        """The number of slots; None means unlimited."""
        self.taken = 0
        self.queue = FairQueue()
        self.queued_bytes = 0
        """The size of the queued requests."""
        self.hold_s = 0.0
        """Mean time that a request holds its slot, in seconds; 0 before the first one ends."""
        self.begin_s = 0.0
        """Mean time until a replica begins a stream, in seconds."""
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._idle = 0
        """Slots whose requests wait at their replica for the requests of other tenants."""

    @property
    def has_free_slot(self) -> bool:
        """Whether a slot is free and no request is queued for it."""
        return self.capacity is None or (self.taken < self.capacity and not len(self.queue))

    def resize(self, capacity: int | None) -> None:
        """Set the number of slots and admit queued requests to new ones."""
        if capacity != self.capacity:
            self.capacity = capacity
            self._admit_queued()

    def enter(self, tenant: str, priority: int) -> bool:
        """Take a slot if one is free and no queued request has precedence; else return False.
        Not called if concurrency is unlimited.
        """
        others_wait = self.queue.waiting(INTERACTIVE) or (priority >= BATCH and len(self.queue))
        # A tenant that may use reserved slots need not queue behind tenants that may not.
        if others_wait and (priority >= BATCH or not self._may_use_reserved(tenant)):
            return False
        if not self._has_room(tenant, priority):
            return False
        self._take(tenant, priority)
        return True

    def holds_fair_share(self, tenant: str) -> bool:
        """Whether other tenants are active and this one holds its fair share of slots or more.
        Its requests may then also wait at the replica for the others'.
        """
        return len(self._tenants) > 1 and not self._may_use_reserved(tenant)

    def begin_idle(self) -> None:
        """Count the slot of a request that waits at its replica as idle. It does no work while it
        waits, so tenants below their share may use one more slot.
        """
        self._idle += 1
        self._admit_queued()

    def end_idle(self) -> None:
        """Stop counting a slot as idle: its request has begun or has ended."""
        self._idle -= 1

    def leave(self, tenant: str, priority: int, held_s: float) -> None:
        """Release a slot that was held for `held_s` seconds."""
        self._release(tenant, priority)
        self.hold_s += (WEIGHT if self.hold_s else 1.0) * (held_s - self.hold_s)
        self._admit_queued()

    def note_begin(self, begin_s: float) -> None:
        """Record how long a replica took to begin a stream."""
        self.begin_s += (WEIGHT if self.begin_s else 1.0) * (begin_s - self.begin_s)

    def estimate_wait_s(self, tenant: str, priority: int) -> float:
        """The expected queueing time of a new request, from measured times; 0 if unknown."""
        if not self.capacity or not self.hold_s:
            return 0.0
        ahead = self.queue.count_ahead(tenant, priority)
        return (ahead + 1) * self.hold_s / self.capacity

    async def wait(
        self,
        tenant: str,
        cost: int,
        priority: int,
        *,
        most: int,
        timeout_s: float,
        deadline_s: float,
        size: int = 0,
        most_bytes: int | None = None,
        start_s: float = 0.0,
    ) -> None:
        """Wait for a slot.

        `most` and `most_bytes` bound the queue; `size` is what the request adds to it, in bytes.
        `timeout_s` bounds the wait, except for batch requests. `deadline_s` is the latest start of
        the answer (0: no deadline). `start_s` is the expected time until a replica has started,
        if none is ready. Raises a 503 or a 504.
        """
        now_s = self._clock()
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queued = self.join_queue(
            tenant, cost, priority, granted, most=most, deadline_s=deadline_s, size=size,
            most_bytes=most_bytes, start_s=start_s,
        )  # fmt: skip
        ends_s = now_s + timeout_s if priority < BATCH else 0.0
        if deadline_s and (not ends_s or deadline_s < ends_s):
            ends_s = deadline_s
        self.queued_bytes += size
        try:
            async with asyncio.timeout(ends_s - now_s if ends_s else None):
                await granted
        except BaseException as error:
            self.leave_queue(queued)
            if not isinstance(error, TimeoutError):
                raise
            if deadline_s and self._clock() >= deadline_s:
                raise deadline_exceeded("while it waited for a free replica") from None
            raise self._make_timeout(timeout_s, start_s) from None
        finally:
            self.queued_bytes -= size

    def join_queue(
        self,
        tenant: str,
        cost: int,
        priority: int,
        granted: Grant,
        *,
        most: int,
        deadline_s: float = 0.0,
        size: int = 0,
        most_bytes: int | None = None,
        start_s: float = 0.0,
    ) -> QueuedRequest:
        """Queue for a slot; `granted` gets its result once the request has one. The bounds are as
        for `wait`. Raises a 503 if the queue is full or the deadline cannot be met.
        """
        now_s = self._clock()
        wait_s = max(start_s, self.estimate_wait_s(tenant, priority))
        if deadline_s and now_s + wait_s + self.begin_s > deadline_s:
            raise refuse_early(self.name, wait_s + self.begin_s, deadline_s - now_s, wait_s)
        if most_bytes is not None and self.queued_bytes + size > most_bytes and len(self.queue):
            raise self._refuse_full(f"requests of {self.queued_bytes} bytes", wait_s)
        self._make_room(tenant, priority, most, wait_s)
        queued = QueuedRequest(tenant, cost, priority, deadline_s, granted)
        self.queue.push(queued)
        return queued

    def leave_queue(self, queued: QueuedRequest) -> None:
        """Leave the queue. A slot that was granted in the meantime is released."""
        granted: Grant = queued.payload
        given = not self.queue.remove(queued) and granted.done() and not granted.cancelled()
        if given and granted.exception() is None:
            self._release(queued.tenant, queued.priority)
        self._admit_queued()

    def sweep(self) -> None:
        """Refuse requests whose deadline cannot be met, and forget tenants that are inactive."""
        now_s = self._clock()
        for queued in list(self.queue):
            if queued.deadline_s and now_s + self.begin_s > queued.deadline_s:
                granted: Grant = queued.payload
                if self.queue.remove(queued) and not granted.done():
                    left_s = queued.deadline_s - now_s
                    granted.set_exception(
                        refuse_early(self.name, self.begin_s, left_s, self.hold_s)
                    )
        old_s = now_s - ACTIVE_S
        for name in [n for n, t in self._tenants.items() if not t.held and t.seen_s < old_s]:
            del self._tenants[name]
        self._admit_queued()

    def dismiss(self, error: Exception | None = None) -> None:
        """Remove all queued requests; each gets `error`, or `NoReplica`, so that it can go
        elsewhere.
        """
        for queued in list(self.queue):
            granted: Grant = queued.payload
            if self.queue.remove(queued) and not granted.done():
                granted.set_exception(error or NoReplica())

    def _make_room(self, tenant: str, priority: int, most: int, wait_s: float) -> None:
        if len(self.queue) < most:
            return
        evicted = self.queue.find_evictable(tenant, priority)
        full = self._refuse_full(f"{len(self.queue)} requests", wait_s)
        if evicted is None:
            raise full
        self.queue.remove(evicted)
        if not evicted.payload.done():
            evicted.payload.set_exception(full)

    def _refuse_full(self, waiting: str, wait_s: float) -> WireError:
        return unavailable(
            f"{waiting} are already waiting for a free replica of '{self.name}'"
            if self.capacity
            else f"no replica of '{self.name}' is ready and {waiting} are waiting",
            "queue_full",
            retry_after_s=max(1.0, wait_s),
        )

    def _make_timeout(self, timeout_s: float, start_s: float) -> WireError:
        if not self.capacity:
            return no_replica_ready(self.name, timeout_s, start_s)
        return unavailable(
            f"no replica of '{self.name}' had a free slot within {timeout_s:g} s",
            "queue_timeout",
            retry_after_s=max(1.0, self.hold_s),
        )

    def _admit_queued(self) -> None:
        """Grant free slots to queued requests."""
        while len(self.queue):
            if self.capacity is None:
                queued = self.queue.pop()
            elif self.taken >= self.capacity + self._idle:
                return
            else:
                queued = self._pop_next(self.capacity - self.taken)
            if queued is None:
                return
            if queued.payload.done():
                continue  # its client has gone
            self._take(queued.tenant, queued.priority)
            queued.payload.set_result(None)

    def _pop_next(self, free: int) -> QueuedRequest | None:
        lowest = BATCH if free > self._count_reserved(BATCH) else INTERACTIVE
        if free > self._count_reserved(INTERACTIVE):
            return self.queue.pop(None, lowest)
        return self.queue.pop(self._may_use_reserved, lowest)

    def _has_room(self, tenant: str, priority: int) -> bool:
        free = (self.capacity or 0) - self.taken
        if free > self._count_reserved(priority):
            return free > 0
        return free + self._idle > 0 and priority < BATCH and self._may_use_reserved(tenant)

    def _count_reserved(self, priority: int) -> int:
        """The number of slots reserved from requests of a priority."""
        capacity = self.capacity or 0
        if priority >= BATCH:
            return capacity // BATCH_RESERVE
        if capacity < MIN_RESERVABLE or len(self._tenants) < 2:
            return 0
        return math.isqrt(capacity)

    def _may_use_reserved(self, tenant: str) -> bool:
        """Whether a tenant may use the reserved slots: it holds less than its fair share, or less
        than half of what the largest tenant holds.
        """
        known = self._tenants.get(tenant)
        if known is None or known.held * len(self._tenants) < (self.capacity or 0):
            return True
        return known.held < max(other.held for other in self._tenants.values()) / 2

    def _take(self, tenant: str, priority: int) -> None:
        self.taken += 1
        if priority >= BATCH:
            return  # batch slots do not count against the tenant's other requests
        known = self._tenants.get(tenant)
        if known is None:
            known = self._tenants[tenant] = _Tenant()
        known.held += 1
        known.seen_s = self._clock()

    def _release(self, tenant: str, priority: int) -> None:
        self.taken -= 1
        if priority < BATCH:
            self._tenants[tenant].held -= 1


def refuse_early(name: str, needed_s: float, left_s: float, retry_after_s: float) -> WireError:
    """A 503 for a deadline that can no longer be met."""
    return WireError(
        503,
        f"an answer of '{name}' would begin in about {needed_s:.2g} s, but the request allows "
        f"{max(0.0, left_s):.2g} s; retry later or allow more time",
        type=OVERLOADED,
        code="deadline_unreachable",
        retry_after_s=max(1.0, retry_after_s),
    )


def deadline_exceeded(when: str) -> WireError:
    """A 504 for a deadline that has passed."""
    return WireError(
        504, f"the request's deadline passed {when}", type=SERVER, code="deadline_exceeded"
    )


def no_replica_ready(name: str, timeout_s: float, start_s: float = 0.0) -> WireError:
    """A 503 for a version with no replica ready in time. `start_s` is how long a start is expected
    to take from now, if that is known.
    """
    return unavailable(
        f"no replica of '{name}' became ready within {timeout_s:g} s; 'thrifty status' shows why",
        "no_replica_ready",
        retry_after_s=max(1.0, start_s) if start_s else 5.0,
    )


def cannot_start(name: str, reason: str) -> WireError:
    """A 503 for a version whose replicas fail to start, with their own reason."""
    return unavailable(
        f"'{name}' cannot start: {reason}. 'thrifty status' shows its state", "cannot_start", 30.0
    )
