"""Fair queuing is plain code over plain state; so are its tests."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.gateway.state.fair_queue import BATCH, INTERACTIVE, QUANTUM, FairQueue, Ticket

TENANTS = st.sampled_from("abcde")
COSTS = st.integers(1, 20_000)


def drain(queue: FairQueue) -> list[Ticket]:
    found = []
    while (ticket := queue.pop()) is not None:
        found.append(ticket)
    return found


@given(st.lists(st.tuples(TENANTS, COSTS, st.sampled_from([INTERACTIVE, BATCH]))))
def test_everything_comes_out_once_urgent_first_and_each_tenants_in_order(
    asked: list[tuple[str, int, int]],
) -> None:
    queue = FairQueue()
    tickets = [Ticket(tenant, cost, priority) for tenant, cost, priority in asked]
    for ticket in tickets:
        queue.push(ticket)
    assert len(queue) == len(tickets)
    found = drain(queue)
    assert len(queue) == 0
    assert {id(t) for t in found} == {id(t) for t in tickets}
    assert [t.priority for t in found] == sorted(t.priority for t in found)
    for tenant in "abcde":
        for priority in (INTERACTIVE, BATCH):
            mine = [t for t in tickets if (t.tenant, t.priority) == (tenant, priority)]
            assert [t for t in found if (t.tenant, t.priority) == (tenant, priority)] == mine


@pytest.mark.slow
@given(
    st.dictionaries(TENANTS, st.lists(COSTS, min_size=40, max_size=60), min_size=2),
    st.randoms(use_true_random=False),
)
def test_tenants_that_always_wait_get_equal_shares_of_tokens(
    asked: dict[str, list[int]], rng: random.Random
) -> None:
    """However large and many their requests are, at every moment while all wait."""
    queue = FairQueue()
    tickets = [Ticket(tenant, cost) for tenant, costs in asked.items() for cost in costs]
    order = {tenant: iter([t for t in tickets if t.tenant == tenant]) for tenant in asked}
    names = [t.tenant for t in tickets]
    rng.shuffle(names)
    for name in names:
        queue.push(next(order[name]))
    left = {tenant: len(costs) for tenant, costs in asked.items()}
    served: Counter[str] = Counter()
    largest = max(cost for costs in asked.values() for cost in costs)
    while all(left.values()):
        ticket = queue.pop()
        assert ticket is not None
        served[ticket.tenant] += ticket.cost
        left[ticket.tenant] -= 1
        shares = [served[tenant] for tenant in asked]
        assert max(shares) - min(shares) <= 2 * (largest + QUANTUM)


def test_one_who_asks_much_delays_itself() -> None:
    queue = FairQueue()
    for _ in range(1000):
        queue.push(Ticket("greedy", 300))
    for _ in range(10):
        queue.pop()
    queue.push(Ticket("modest", 300))
    assert queue.pop().tenant == "modest"  # type: ignore[union-attr]
    # ... but does not become the last for ever by asking again and again.
    turns = Counter()
    for _ in range(200):
        if not queue._queues[0].waiting_of("modest"):
            queue.push(Ticket("modest", 300))
        turns[queue.pop().tenant] += 1  # type: ignore[union-attr]
    assert 80 <= turns["modest"] <= 120


def test_one_long_request_is_paid_for_before_the_next() -> None:
    queue = FairQueue()
    for _ in range(3):
        queue.push(Ticket("long", 100 * QUANTUM))
    for _ in range(400):
        queue.push(Ticket("short", QUANTUM))
    found = [ticket.tenant for ticket in drain(queue)]
    places = [i for i, tenant in enumerate(found) if tenant == "long"]
    assert places[1] - places[0] >= 95
    assert places[2] - places[1] >= 95


def test_a_request_of_a_million_tokens_costs_no_more_time_than_others() -> None:
    queue = FairQueue()
    for tenant in "ab":
        for _ in range(50):
            queue.push(Ticket(tenant, 10**12))
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
def test_whatever_happens_nothing_is_lost_or_doubled(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    queue = FairQueue()
    waiting: list[Ticket] = []
    for step in steps:
        if step[0] == "push":
            ticket = Ticket(step[1], step[2], step[3])
            waiting.append(ticket)
            queue.push(ticket)
        elif step[0] == "remove" and waiting:
            ticket = waiting.pop(step[1] % len(waiting))
            assert queue.remove(ticket)
            assert not queue.remove(ticket)
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


def test_where_no_more_may_wait_batches_give_way_and_then_whoever_has_the_most() -> None:
    queue = FairQueue()
    assert queue.make_room("a", INTERACTIVE) is None
    many = [Ticket("a", 1) for _ in range(3)]
    batch = [Ticket("a", 1, BATCH) for _ in range(2)]
    for ticket in [*many, *batch, Ticket("b", 1)]:
        queue.push(ticket)
    assert queue.make_room("a", INTERACTIVE) is batch[-1]
    assert queue.make_room("a", BATCH) is None
    for ticket in batch:
        queue.remove(ticket)
    assert queue.make_room("b", INTERACTIVE) is many[-1]
    assert queue.make_room("new", INTERACTIVE) is many[-1]
    assert queue.make_room("a", INTERACTIVE) is None
