"""The fair queue, as plain code over plain state."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.gateway.state.fair_queue import BATCH, INTERACTIVE, QUANTUM, FairQueue, QueuedRequest

TENANTS = st.sampled_from("abcde")
COSTS = st.integers(1, 20_000)


def drain(queue: FairQueue) -> list[QueuedRequest]:
    found = []
    while (queued := queue.pop()) is not None:
        found.append(queued)
    return found


@given(st.lists(st.tuples(TENANTS, COSTS, st.sampled_from([INTERACTIVE, BATCH]))))
def test_order_of_priorities_and_of_each_tenants_requests(
    asked: list[tuple[str, int, int]],
) -> None:
    queue = FairQueue()
    requests = [QueuedRequest(tenant, cost, priority) for tenant, cost, priority in asked]
    for queued in requests:
        queue.push(queued)
    assert len(queue) == len(requests)
    found = drain(queue)
    assert len(queue) == 0
    assert {id(t) for t in found} == {id(t) for t in requests}
    assert [t.priority for t in found] == sorted(t.priority for t in found)
    for tenant in "abcde":
        for priority in (INTERACTIVE, BATCH):
            mine = [t for t in requests if (t.tenant, t.priority) == (tenant, priority)]
            assert [t for t in found if (t.tenant, t.priority) == (tenant, priority)] == mine


@pytest.mark.slow
@given(
    st.dictionaries(TENANTS, st.lists(COSTS, min_size=40, max_size=60), min_size=2),
    st.randoms(use_true_random=False),
)
def test_backlogged_tenants_get_equal_shares_of_tokens(
    asked: dict[str, list[int]], rng: random.Random
) -> None:
    """Holds for any number and size of requests, at every moment while all tenants wait."""
    queue = FairQueue()
    requests = [QueuedRequest(tenant, cost) for tenant, costs in asked.items() for cost in costs]
    order = {tenant: iter([t for t in requests if t.tenant == tenant]) for tenant in asked}
    names = [t.tenant for t in requests]
    rng.shuffle(names)
    for name in names:
        queue.push(next(order[name]))
    left = {tenant: len(costs) for tenant, costs in asked.items()}
    served: Counter[str] = Counter()
    largest = max(cost for costs in asked.values() for cost in costs)
    while all(left.values()):
        queued = queue.pop()
        assert queued is not None
        served[queued.tenant] += queued.cost
        left[queued.tenant] -= 1
        shares = [served[tenant] for tenant in asked]
        assert max(shares) - min(shares) <= 2 * (largest + QUANTUM)


def test_a_tenant_with_many_requests_delays_itself() -> None:
    queue = FairQueue()
    for _ in range(1000):
        queue.push(QueuedRequest("greedy", 300))
    for _ in range(10):
        queue.pop()
    queue.push(QueuedRequest("modest", 300))
    assert queue.pop().tenant == "modest"  # type: ignore[union-attr]
    # But repeated requests do not keep it last forever.
    turns = Counter()
    for _ in range(200):
        if not queue._queues[0].waiting_of("modest"):
            queue.push(QueuedRequest("modest", 300))
        turns[queue.pop().tenant] += 1  # type: ignore[union-attr]
    assert 80 <= turns["modest"] <= 120


def test_a_long_request_delays_the_tenants_next_one() -> None:
    queue = FairQueue()
    for _ in range(3):
        queue.push(QueuedRequest("long", 100 * QUANTUM))
    for _ in range(400):
        queue.push(QueuedRequest("short", QUANTUM))
    found = [queued.tenant for queued in drain(queue)]
    places = [i for i, tenant in enumerate(found) if tenant == "long"]
    assert places[1] - places[0] >= 95
    assert places[2] - places[1] >= 95


def test_scheduling_a_huge_request_is_fast() -> None:
    queue = FairQueue()
    for tenant in "ab":
        for _ in range(50):
            queue.push(QueuedRequest(tenant, 10**12))
    assert Counter(t.tenant for t in drain(queue)) == {"a": 50, "b": 50}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), TENANTS, COSTS, st.sampled_from([0, 1])),
            st.tuples(st.just("pop")),
            st.tuples(st.just("pop_of"), TENANTS),
            st.tuples(st.just("remove"), st.integers(0, 50)),
        ),
        max_size=200,
    )
)
def test_no_request_is_lost_or_duplicated(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    queue = FairQueue()
    waiting: list[QueuedRequest] = []
    for step in steps:
        if step[0] == "push":
            queued = QueuedRequest(step[1], step[2], step[3])
            waiting.append(queued)
            queue.push(queued)
        elif step[0] == "remove" and waiting:
            queued = waiting.pop(step[1] % len(waiting))
            assert queue.remove(queued)
            assert not queue.remove(queued)
        elif step[0] == "pop":
            popped = queue.pop()
            assert (popped is None) == (not waiting)
            if popped is not None:
                waiting.remove(popped)
        elif step[0] == "pop_of":
            popped = queue.pop(lambda tenant, wanted=step[1]: tenant == wanted)  # type: ignore[misc]
            if popped is not None:
                assert popped.tenant == step[1]
                waiting.remove(popped)
            elif queue.waiting(INTERACTIVE) == 0:
                assert not any(t.tenant == step[1] for t in waiting)
        assert len(queue) == len(waiting) == len(list(queue))
        for priority in (0, 1):
            count = sum(t.priority == priority for t in waiting)
            assert queue.waiting(priority) == count
        for tenant in "abc":
            assert queue.count_ahead(tenant, 1) <= len(waiting)


def test_eviction_prefers_batches_then_the_largest_tenant() -> None:
    queue = FairQueue()
    assert queue.find_evictable("a", INTERACTIVE) is None
    many = [QueuedRequest("a", 1) for _ in range(3)]
    batch = [QueuedRequest("a", 1, BATCH) for _ in range(2)]
    for queued in [*many, *batch, QueuedRequest("b", 1)]:
        queue.push(queued)
    assert queue.find_evictable("a", INTERACTIVE) is batch[-1]
    assert queue.find_evictable("a", BATCH) is None
    for queued in batch:
        queue.remove(queued)
    assert queue.find_evictable("b", INTERACTIVE) is many[-1]
    assert queue.find_evictable("new", INTERACTIVE) is many[-1]
    assert queue.find_evictable("a", INTERACTIVE) is None
