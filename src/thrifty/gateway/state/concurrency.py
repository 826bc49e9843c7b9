"""Is there room at a replica? A request takes a slot before a replica is chosen for it, and gives it
back at its last byte. Who finds none waits, in the order of `fair_queue`.

Replicas have as many slots as `replicas.slots` says, or their engine; where nobody says anything
there is no bound, no queue, and nothing here costs anything.

A few slots are kept free of those who already have much: of batch requests, and, while more than
one tenant is about, of tenants that hold their share and more. So who asks seldom seldom waits, not even for
the end of a long answer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from thrifty.gateway.state.fair_queue import BATCH, INTERACTIVE, FairQueue, Ticket
from thrifty.openai.errors import OVERLOADED, SERVER, WireError, unavailable

KEPT_SHARE = 10
"""One slot in so many is kept from batches."""
KEEP_FROM = 4
"""With fewer slots than this, none can be kept for other tenants. Of more, as many are kept as the
square root of their number: so much does the number in use go up and down by itself, and who comes
in such a moment should not wait (the square-root rule of staffing, Halfin and Whitt 1981)."""
ACTIVE_S = 30.0
"""A tenant is about for so long after its last request."""
DEADLINE_CODES = frozenset({"deadline_unreachable", "deadline_exceeded"})
WEIGHT = 0.1
"""How much one request changes the measured times."""


class NoReplica(Exception):
    """The version has no ready replica any more, and another one can answer."""


@dataclass(slots=True)
class _Tenant:
    held: int = 0
    seen_s: float = 0.0


class ConcurrencyLimiter:
    """The slots of one version, as this worker sees them, and who waits for one."""

    def __init__(self, name: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.name = name
        self.capacity: int | None = None
        """How many slots there are; None: no bound."""
        self.taken = 0
        self.queue = FairQueue()
        self.hold_s = 0.0
        """How long a request keeps its slot, on average; 0 where none has ended yet."""
        self.begin_s = 0.0
        """How long a replica takes to begin a stream, on average."""
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._idle = 0
        """Slots whose requests wait at their replica for those of others."""

    @property
    def has_free_slot(self) -> bool:
        """Whether there is room beside those who have or want a slot."""
        return self.capacity is None or (self.taken < self.capacity and not len(self.queue))

    def resize(self, capacity: int | None) -> None:
        """Set how many slots there are; who waits for one of the new ones goes on."""
        if capacity != self.capacity:
            self.capacity = capacity
            self._let_in()

    def enter(self, tenant: str, priority: int) -> bool:
        """Take a slot, if one is free and nobody waits who should have it; else False. Not asked
        where there is no bound.
        """
        others_wait = self.queue.waiting(INTERACTIVE) or (priority >= BATCH and len(self.queue))
        # Whoever may use the slots that are kept need not stand behind those who may not.
        if others_wait and (priority >= BATCH or not self._is_kept_for(tenant)):
            return False
        if not self._has_room(tenant, priority):
            return False
        self._take(tenant, priority)
        return True

    def holds_much(self, tenant: str) -> bool:
        """Whether others are about and the tenant holds its share or more: its requests may wait for
        theirs at the replica, too.
        """
        return len(self._tenants) > 1 and not self._is_kept_for(tenant)

    def begin_idle(self) -> None:
        """A request that got a slot waits at its replica until others there have begun. Its slot does
        no work meanwhile, so that tenants with less than their share may have one more.
        """
        self._idle += 1
        self._let_in()

    def end_idle(self) -> None:
        """It has begun, or it is gone."""
        self._idle -= 1

    def leave(self, tenant: str, priority: int, held_s: float) -> None:
        """Give a slot back that was held for `held_s` seconds."""
        self._release(tenant, priority)
        self.hold_s += (WEIGHT if self.hold_s else 1.0) * (held_s - self.hold_s)
        self._let_in()

    def note_begin(self, begin_s: float) -> None:
        """Take how long a replica took to begin a stream."""
        self.begin_s += (WEIGHT if self.begin_s else 1.0) * (begin_s - self.begin_s)

    def estimate_wait_s(self, tenant: str, priority: int) -> float:
        """How long a new request would wait, by what was measured."""
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
    ) -> None:
        """Wait for a slot. `most` bounds how many wait, `timeout_s` how long a request that is not
        a batch's waits, `deadline_s` (0: none) is when its answer must have begun. Raises a 503
        or 504.
        """
        now_s = self._clock()
        wait_s = self.estimate_wait_s(tenant, priority)
        if deadline_s and now_s + wait_s + self.begin_s > deadline_s:
            raise refuse_early(self.name, wait_s + self.begin_s, deadline_s - now_s, wait_s)
        self._make_room(tenant, priority, most, wait_s)
        ticket = Ticket(tenant, cost, priority, deadline_s)
        ticket.payload = turn = asyncio.get_running_loop().create_future()
        self.queue.push(ticket)
        ends_s = now_s + timeout_s if priority < BATCH else 0.0
        if deadline_s and (not ends_s or deadline_s < ends_s):
            ends_s = deadline_s
        try:
            async with asyncio.timeout(ends_s - now_s if ends_s else None):
                await turn
        except BaseException as error:
            self._step_out(ticket, turn)
            if not isinstance(error, TimeoutError):
                raise
            if deadline_s and self._clock() >= deadline_s:
                raise deadline_exceeded("while it waited for a free replica") from None
            raise self._give_up(timeout_s) from None

    def sweep(self) -> None:
        """Refuse those whose deadline cannot be met any more; forget tenants that are gone."""
        now_s = self._clock()
        for ticket in list(self.queue):
            if ticket.deadline_s and now_s + self.begin_s > ticket.deadline_s:
                turn: asyncio.Future[None] = ticket.payload
                if self.queue.remove(ticket) and not turn.done():
                    left_s = ticket.deadline_s - now_s
                    turn.set_exception(refuse_early(self.name, self.begin_s, left_s, self.hold_s))
        old_s = now_s - ACTIVE_S
        for name in [n for n, t in self._tenants.items() if not t.held and t.seen_s < old_s]:
            del self._tenants[name]
        self._let_in()

    def dismiss(self) -> None:
        """Send everybody who waits elsewhere: they get `NoReplica`."""
        for ticket in list(self.queue):
            turn: asyncio.Future[None] = ticket.payload
            if self.queue.remove(ticket) and not turn.done():
                turn.set_exception(NoReplica())

    def _make_room(self, tenant: str, priority: int, most: int, wait_s: float) -> None:
        if len(self.queue) < most:
            return
        victim = self.queue.make_room(tenant, priority)
        full = unavailable(
            f"{len(self.queue)} requests wait for a free replica of '{self.name}' already"
            if self.capacity
            else f"no replica of '{self.name}' is ready and {len(self.queue)} requests wait already",
            "queue_full",
            retry_after_s=max(1.0, wait_s),
        )
        if victim is None:
            raise full
        self.queue.remove(victim)
        if not victim.payload.done():
            victim.payload.set_exception(full)

    def _step_out(self, ticket: Ticket, turn: asyncio.Future[None]) -> None:
        """Stop waiting; a slot that was given a moment ago goes back."""
        given = not self.queue.remove(ticket) and turn.done() and not turn.cancelled()
        if given and turn.exception() is None:
            self._release(ticket.tenant, ticket.priority)
        self._let_in()

    def _give_up(self, timeout_s: float) -> WireError:
        if not self.capacity:
            return no_replica_ready(self.name, timeout_s)
        return unavailable(
            f"no replica of '{self.name}' had room within {timeout_s:g} s",
            "queue_timeout",
            retry_after_s=max(1.0, self.hold_s),
        )

    def _let_in(self) -> None:
        """Give free slots to those who wait."""
        while len(self.queue):
            if self.capacity is None:
                ticket = self.queue.pop()
            elif self.taken >= self.capacity + self._idle:
                return
            else:
                ticket = self._pop_next(self.capacity - self.taken)
            if ticket is None:
                return
            if ticket.payload.done():
                continue  # it has just gone
            self._take(ticket.tenant, ticket.priority)
            ticket.payload.set_result(None)

    def _pop_next(self, free: int) -> Ticket | None:
        least = BATCH if free > self._kept(BATCH) else INTERACTIVE
        if free > self._kept(INTERACTIVE):
            return self.queue.pop(None, least)
        return self.queue.pop(self._is_kept_for, least)

    def _has_room(self, tenant: str, priority: int) -> bool:
        free = (self.capacity or 0) - self.taken
        if free > self._kept(priority):
            return free > 0
        return free + self._idle > 0 and priority < BATCH and self._is_kept_for(tenant)

    def _kept(self, priority: int) -> int:
        """How many slots are kept from requests of a priority."""
        capacity = self.capacity or 0
        if priority >= BATCH:
            return capacity // KEPT_SHARE
        if capacity < KEEP_FROM or len(self._tenants) < 2:
            return 0
        return math.isqrt(capacity)

    def _is_kept_for(self, tenant: str) -> bool:
        """Whether a tenant may use the slots that are kept: it holds less than its share, or less
        than half of what the greediest holds.
        """
        known = self._tenants.get(tenant)
        if known is None or known.held * len(self._tenants) < (self.capacity or 0):
            return True
        return known.held < max(other.held for other in self._tenants.values()) / 2

    def _take(self, tenant: str, priority: int) -> None:
        self.taken += 1
        if priority >= BATCH:
            return  # what batches hold does not count against their tenant's other requests
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
    """A 503 for a deadline that cannot be met any more."""
    return WireError(
        503,
        f"an answer of '{name}' would begin in about {needed_s:.2g} s, and the request allows "
        f"{max(0.0, left_s):.2g} s; try again later, or allow more",
        type=OVERLOADED,
        code="deadline_unreachable",
        retry_after_s=max(1.0, retry_after_s),
    )


def deadline_exceeded(when: str) -> WireError:
    """A 504 for a deadline that has passed."""
    return WireError(
        504, f"the request's deadline passed {when}", type=SERVER, code="deadline_exceeded"
    )


def no_replica_ready(name: str, timeout_s: float) -> WireError:
    """A 503 where nothing became ready in time."""
    return unavailable(
        f"no replica of '{name}' became ready within {timeout_s:g} s; 'thrifty status' shows why",
        "no_replica_ready",
        retry_after_s=5.0,
    )
