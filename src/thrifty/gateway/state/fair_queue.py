"""Who goes next of those that wait: by priority, and within one by deficit round robin on tokens.

Plain code over plain state; nothing here reads a clock.

Tenants take turns. A turn lasts while the tenant's balance is above zero; what is sent is taken
off it, and each turn that ends adds `QUANTUM`. So tenants with something waiting get equal shares
of tokens, whatever they send and however much of it, and who was given more than a share at once
(one long request) waits the longer for the next (deficit round robin, Shreedhar and Varghese 1995,
in the form of RFC 8290: a tenant that had nothing waiting goes before the others, for one turn, so
that whoever asks seldom is served at once).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

QUANTUM = 512
"""Tokens a turn: about a short request, so that shares are even after a few of them."""
INTERACTIVE, BATCH = 0, 1


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that waits. `cost` is in tokens, `deadline_s` (0: none) on the caller's clock."""

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
        """Tenants that had nothing waiting a moment ago, in the order in which they came."""
        self._turns: OrderedDict[str, _Flow] = OrderedDict()
        """All others in the order of their turns; some have nothing waiting but a balance to pay."""
        self.count = 0

    def __iter__(self) -> Iterator[Ticket]:
        for flows in (self._fresh, self._turns):
            for flow in flows.values():
                yield from flow.tickets

    @property
    def tenants(self) -> int:
        """How many tenants take turns."""
        return len(self._fresh) + len(self._turns)

    def waiting_of(self, tenant: str) -> int:
        """How many requests of a tenant wait."""
        flow = self._find(tenant)
        return len(flow.tickets) if flow is not None else 0

    def push(self, ticket: Ticket) -> None:
        """Put a request at the end of its tenant's."""
        flow = self._find(ticket.tenant)
        if flow is None:
            flow = self._fresh[ticket.tenant] = _Flow()
        flow.tickets.append(ticket)
        self.count += 1

    def remove(self, ticket: Ticket) -> bool:
        """Take a request out; False where it is not there any more."""
        flow = self._find(ticket.tenant)
        if flow is None or ticket not in flow.tickets:
            return False
        flow.tickets.remove(ticket)
        self._note_less()
        return True

    def find_newest(self) -> Ticket | None:
        """The last request of the tenant with the most of them."""
        flows = [*self._fresh.values(), *self._turns.values()]
        longest = max(flows, key=lambda flow: len(flow.tickets), default=None)
        return longest.tickets[-1] if longest is not None and longest.tickets else None

    def pop(self, allowed: Callable[[str], bool] | None = None) -> Ticket | None:
        """The request that goes next; with `allowed`, of those tenants only, in their order."""
        if not self.count:
            return None
        if allowed is not None:
            return self._pop_of(allowed)
        while self._fresh:
            tenant, flow = next(iter(self._fresh.items()))
            ticket = flow.tickets.popleft() if flow.tickets else None
            flow.balance -= ticket.cost if ticket is not None else 0
            if flow.balance <= 0 or not flow.tickets:
                # Even with nothing left it takes a turn, so that it is not fresh again at once.
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
        """Take rounds in which nobody could go in one step: they may be thousands."""
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
            # Nobody waits, so nobody was kept waiting by anybody.
            self._fresh.clear()
            self._turns.clear()

    def _find(self, tenant: str) -> _Flow | None:
        return self._fresh.get(tenant) or self._turns.get(tenant)


class FairQueue:
    """All that wait, in at most two priorities; batch requests go when no other wait."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues = (DeficitRoundRobin(), DeficitRoundRobin())

    def __len__(self) -> int:
        return self._queues[0].count + self._queues[1].count

    def __iter__(self) -> Iterator[Ticket]:
        yield from self._queues[0]
        yield from self._queues[1]

    def waiting(self, priority: int) -> int:
        """How many wait in one priority."""
        return self._queues[priority].count

    def push(self, ticket: Ticket) -> None:
        """Put a request in."""
        self._queues[ticket.priority].push(ticket)

    def pop(
        self, allowed: Callable[[str], bool] | None = None, least: int = BATCH
    ) -> Ticket | None:
        """The request that goes next, of the priority `least` or a more urgent one; with
        `allowed`, of those tenants only.
        """
        ticket = self._queues[INTERACTIVE].pop(allowed)
        if ticket is None and least >= BATCH and not self._queues[INTERACTIVE].count:
            ticket = self._queues[BATCH].pop(allowed)
        return ticket

    def remove(self, ticket: Ticket) -> bool:
        """Take a request out; False where it is not there any more."""
        return self._queues[ticket.priority].remove(ticket)

    def make_room(self, tenant: str, priority: int) -> Ticket | None:
        """The request that should give way to a new one where no more may wait: one of a batch, or
        the newest of the tenant that has the most; None where the new one has to.
        """
        if priority < BATCH and self._queues[BATCH].count:
            return self._queues[BATCH].find_newest()
        newest = self._queues[priority].find_newest()
        if newest is None:
            return None
        waiting_of = self._queues[priority].waiting_of
        return newest if waiting_of(newest.tenant) > waiting_of(tenant) + 1 else None

    def count_ahead(self, tenant: str, priority: int) -> int:
        """About how many requests go before a new one of `tenant`."""
        queue = self._queues[priority]
        turns = (queue.waiting_of(tenant) + 1) * max(1, queue.tenants)
        ahead = min(queue.count, turns)
        return ahead + (self._queues[INTERACTIVE].count if priority == BATCH else 0)
