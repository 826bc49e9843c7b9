"""The fair queue: which waiting request goes next. Priorities are strict; within a priority,
tenants share tokens by deficit round robin. Nothing here reads a clock.

Tenants take turns. A turn lasts while the tenant's balance is positive. The cost of each request is
subtracted from the balance, and each turn that ends adds `QUANTUM`. Tenants with queued requests
thus get equal shares of tokens, whatever the number and size of their requests. A tenant that
exceeds its share with one long request waits longer for its next turn (deficit round robin,
Shreedhar and Varghese 1995). As in RFC 8290, a tenant with nothing queued before goes ahead of the
others for one turn, so tenants that send few requests are served at once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

QUANTUM = 512
"""Tokens per turn: about one short request, so that shares even out after a few turns."""
INTERACTIVE, BATCH = 0, 1


@dataclass(eq=False, slots=True)
class Ticket:
    """A waiting request. `cost` is in tokens, `deadline_s` (0: none) is on the caller's clock."""

    tenant: str
    cost: int
    priority: int = INTERACTIVE
    deadline_s: float = 0.0
    payload: Any = field(default=None, repr=False)


@dataclass(eq=False, slots=True)
class _Flow:
    """One tenant's waiting requests."""

    balance: int = QUANTUM
    tickets: deque[Ticket] = field(default_factory=deque)


class DeficitRoundRobin:
    """The waiting requests of one priority."""

    __slots__ = ("_fresh", "_turns", "count")

    def __init__(self) -> None:
        self._fresh: OrderedDict[str, _Flow] = OrderedDict()
        """Tenants that had nothing queued until now, in order of arrival."""
        self._turns: OrderedDict[str, _Flow] = OrderedDict()
        """All other tenants in turn order; some have no queued request but a negative balance."""
        self.count = 0

    def __iter__(self) -> Iterator[Ticket]:
        for flows in (self._fresh, self._turns):
            for flow in flows.values():
                yield from flow.tickets

    @property
    def tenants(self) -> int:
        """The number of tenants in the rotation."""
        return len(self._fresh) + len(self._turns)

    def waiting_of(self, tenant: str) -> int:
        """The number of waiting requests of a tenant."""
        flow = self._find(tenant)
        return len(flow.tickets) if flow is not None else 0

    def push(self, ticket: Ticket) -> None:
        """Append a request to its tenant's queue."""
        flow = self._find(ticket.tenant)
        if flow is None:
            flow = self._fresh[ticket.tenant] = _Flow()
        flow.tickets.append(ticket)
        self.count += 1

    def remove(self, ticket: Ticket) -> bool:
        """Remove a request; False if it is no longer queued."""
        flow = self._find(ticket.tenant)
        if flow is None or ticket not in flow.tickets:
            return False
        flow.tickets.remove(ticket)
        self._note_less()
        return True

    def find_newest(self) -> Ticket | None:
        """The newest request of the tenant with the most waiting requests."""
        flows = [*self._fresh.values(), *self._turns.values()]
        longest = max(flows, key=lambda flow: len(flow.tickets), default=None)
        return longest.tickets[-1] if longest is not None and longest.tickets else None

    def pop(self, allowed: Callable[[str], bool] | None = None) -> Ticket | None:
        """Remove and return the next request; with `allowed`, only of tenants it accepts."""
        if not self.count:
            return None
        if allowed is not None:
            return self._pop_of(allowed)
        while self._fresh:
            tenant, flow = next(iter(self._fresh.items()))
            ticket = flow.tickets.popleft() if flow.tickets else None
            flow.balance -= ticket.cost if ticket is not None else 0
            if flow.balance <= 0 or not flow.tickets:
                # It moves on even with an empty queue, so that it does not count as new again.
                del self._fresh[tenant]
                self._turns[tenant] = flow
            if ticket is not None:
                return self._give(ticket)
        passed = 0
        while True:
            tenant, flow = next(iter(self._turns.items()))
            if flow.balance <= 0:
                flow.balance += QUANTUM
                self._turns.move_to_end(tenant)
                passed += 1
                if passed >= len(self._turns):
                    self._skip_rounds()
                    passed = 0
            elif not flow.tickets:
                del self._turns[tenant]
                passed = 0
            else:
                ticket = flow.tickets.popleft()
                flow.balance -= ticket.cost
                return self._give(ticket)

    def _pop_of(self, allowed: Callable[[str], bool]) -> Ticket | None:
        for flows in (self._fresh, self._turns):
            for tenant, flow in flows.items():
                if flow.tickets and allowed(tenant):
                    ticket = flow.tickets.popleft()
                    flow.balance -= ticket.cost
                    return self._give(ticket)
        return None

    def _skip_rounds(self) -> None:
        """Skip rounds in which no tenant could go, in one step: there may be thousands."""
        rounds = min(-flow.balance // QUANTUM for flow in self._turns.values() if flow.tickets)
        if rounds > 0:
            for flow in self._turns.values():
                flow.balance += rounds * QUANTUM

    def _give(self, ticket: Ticket) -> Ticket:
        self._note_less()
        return ticket

    def _note_less(self) -> None:
        self.count -= 1
        if not self.count:
            # With nothing queued, no tenant is owed anything.
            self._fresh.clear()
            self._turns.clear()

    def _find(self, tenant: str) -> _Flow | None:
        return self._fresh.get(tenant) or self._turns.get(tenant)


class FairQueue:
    """All waiting requests, in two priorities. Batch requests go only if no other waits."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues = (DeficitRoundRobin(), DeficitRoundRobin())

    def __len__(self) -> int:
        return self._queues[0].count + self._queues[1].count

    def __iter__(self) -> Iterator[Ticket]:
        yield from self._queues[0]
        yield from self._queues[1]

    def waiting(self, priority: int) -> int:
        """The number of waiting requests of one priority."""
        return self._queues[priority].count

    def push(self, ticket: Ticket) -> None:
        """Add a request."""
        self._queues[ticket.priority].push(ticket)

    def pop(
        self, allowed: Callable[[str], bool] | None = None, least: int = BATCH
    ) -> Ticket | None:
        """Remove and return the next request of priority `least` or more urgent; with `allowed`,
        only of tenants it accepts.
        """
        ticket = self._queues[INTERACTIVE].pop(allowed)
        if ticket is None and least >= BATCH and not self._queues[INTERACTIVE].count:
            ticket = self._queues[BATCH].pop(allowed)
        return ticket

    def remove(self, ticket: Ticket) -> bool:
        """Remove a request; False if it is no longer queued."""
        return self._queues[ticket.priority].remove(ticket)

    def make_room(self, tenant: str, priority: int) -> Ticket | None:
        """The request to evict for a new one when the queue is full: a batch request, or the newest
        request of the tenant with the most. None if the new request should be refused instead.
        """
        if priority < BATCH and self._queues[BATCH].count:
            return self._queues[BATCH].find_newest()
        newest = self._queues[priority].find_newest()
        if newest is None:
            return None
        waiting_of = self._queues[priority].waiting_of
        return newest if waiting_of(newest.tenant) > waiting_of(tenant) + 1 else None

    def count_ahead(self, tenant: str, priority: int) -> int:
        """The approximate number of requests that go before a new one of `tenant`."""
        queue = self._queues[priority]
        turns = (queue.waiting_of(tenant) + 1) * max(1, queue.tenants)
        ahead = min(queue.count, turns)
        return ahead + (self._queues[INTERACTIVE].count if priority == BATCH else 0)
