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
class QueuedRequest:
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
    requests: deque[QueuedRequest] = field(default_factory=deque)


class DeficitRoundRobin:
    """The waiting requests of one priority."""

    __slots__ = ("_new_flows", "_old_flows", "count")

    def __init__(self) -> None:
        self._new_flows: OrderedDict[str, _Flow] = OrderedDict()
        """Tenants that had nothing queued until now, in order of arrival."""
        self._old_flows: OrderedDict[str, _Flow] = OrderedDict()
        """All other tenants in turn order; some have no queued request but a negative balance."""
        self.count = 0

    def __iter__(self) -> Iterator[QueuedRequest]:
        for flows in (self._new_flows, self._old_flows):
            for flow in flows.values():
                yield from flow.requests

    @property
    def tenants(self) -> int:
        """The number of tenants in the rotation."""
        return len(self._new_flows) + len(self._old_flows)

    def waiting_of(self, tenant: str) -> int:
        """The number of waiting requests of a tenant."""
        flow = self._find(tenant)
        return len(flow.requests) if flow is not None else 0

    def push(self, queued: QueuedRequest) -> None:
        """Append a request to its tenant's queue."""
        flow = self._find(queued.tenant)
        if flow is None:
            flow = self._new_flows[queued.tenant] = _Flow()
        flow.requests.append(queued)
        self.count += 1

    def remove(self, queued: QueuedRequest) -> bool:
        """Remove a request; False if it is no longer queued."""
        flow = self._find(queued.tenant)
        if flow is None or queued not in flow.requests:
            return False
        flow.requests.remove(queued)
        self._decrement()
        return True

    def find_newest(self) -> QueuedRequest | None:
        """The newest request of the tenant with the most waiting requests."""
        flows = [*self._new_flows.values(), *self._old_flows.values()]
        longest = max(flows, key=lambda flow: len(flow.requests), default=None)
        return longest.requests[-1] if longest is not None and longest.requests else None

    def pop(self, allowed: Callable[[str], bool] | None = None) -> QueuedRequest | None:
        """Remove and return the next request; with `allowed`, only of tenants it accepts."""
        if not self.count:
            return None
        if allowed is not None:
            return self._pop_allowed(allowed)
        while self._new_flows:
            tenant, flow = next(iter(self._new_flows.items()))
            queued = flow.requests.popleft() if flow.requests else None
            flow.balance -= queued.cost if queued is not None else 0
            if flow.balance <= 0 or not flow.requests:
                # It moves on even with an empty queue, so that it does not count as new again.
                del self._new_flows[tenant]
                self._old_flows[tenant] = flow
            if queued is not None:
                return self._give(queued)
        passed = 0
        while True:
            tenant, flow = next(iter(self._old_flows.items()))
            if flow.balance <= 0:
                flow.balance += QUANTUM
                self._old_flows.move_to_end(tenant)
                passed += 1
                if passed >= len(self._old_flows):
                    self._skip_rounds()
                    passed = 0
            elif not flow.requests:
                del self._old_flows[tenant]
                passed = 0
            else:
                queued = flow.requests.popleft()
                flow.balance -= queued.cost
                return self._give(queued)

    def _pop_allowed(self, allowed: Callable[[str], bool]) -> QueuedRequest | None:
        for flows in (self._new_flows, self._old_flows):
            for tenant, flow in flows.items():
                if flow.requests and allowed(tenant):
                    queued = flow.requests.popleft()
                    flow.balance -= queued.cost
                    return self._give(queued)
        return None

    def _skip_rounds(self) -> None:
        """Skip rounds in which no tenant could go, in one step: there may be thousands."""
        rounds = min(-flow.balance // QUANTUM for flow in self._old_flows.values() if flow.requests)
        if rounds > 0:
            for flow in self._old_flows.values():
                flow.balance += rounds * QUANTUM

    def _give(self, queued: QueuedRequest) -> QueuedRequest:
        self._decrement()
        return queued

    def _decrement(self) -> None:
        self.count -= 1
        if not self.count:
            # With nothing queued, no tenant is owed anything.
            self._new_flows.clear()
            self._old_flows.clear()

    def _find(self, tenant: str) -> _Flow | None:
        return self._new_flows.get(tenant) or self._old_flows.get(tenant)


class FairQueue:
    """All waiting requests, in two priorities. Batch requests go only if no other waits."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues = (DeficitRoundRobin(), DeficitRoundRobin())

    def __len__(self) -> int:
        return self._queues[0].count + self._queues[1].count

    def __iter__(self) -> Iterator[QueuedRequest]:
        yield from self._queues[0]
        yield from self._queues[1]

    def waiting(self, priority: int) -> int:
        """The number of waiting requests of one priority."""
        return self._queues[priority].count

    def push(self, queued: QueuedRequest) -> None:
        """Add a request."""
        self._queues[queued.priority].push(queued)

    def pop(
        self, allowed: Callable[[str], bool] | None = None, lowest: int = BATCH
    ) -> QueuedRequest | None:
        """Remove and return the next request of priority `lowest` or more urgent; with `allowed`,
        only of tenants it accepts.
        """
        queued = self._queues[INTERACTIVE].pop(allowed)
        if queued is None and lowest >= BATCH and not self._queues[INTERACTIVE].count:
            queued = self._queues[BATCH].pop(allowed)
        return queued

    def remove(self, queued: QueuedRequest) -> bool:
        """Remove a request; False if it is no longer queued."""
        return self._queues[queued.priority].remove(queued)

    def find_evictable(self, tenant: str, priority: int) -> QueuedRequest | None:
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
