"""The gate in front of replicas: slots, waiting, priorities, what is kept for whom, deadlines."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from thrifty.gateway.admission.fair_queue import BATCH, INTERACTIVE
from thrifty.gateway.admission.slots import Gate
from thrifty.wire.errors import WireError


def make_gate(capacity: int | None, clock: list[float] | None = None) -> Gate:
    time = clock or [100.0]
    gate = Gate("m", lambda: time[0])
    gate.resize(capacity)
    return gate


async def wait(
    gate: Gate,
    tenant: str = "a",
    priority: int = INTERACTIVE,
    *,
    cost: int = 100,
    most: int = 100,
    timeout_s: float = 5.0,
    deadline_s: float = 0.0,
) -> None:
    await gate.wait(tenant, cost, priority, most=most, timeout_s=timeout_s, deadline_s=deadline_s)


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_slots_are_taken_and_given_back() -> None:
    gate = make_gate(2)
    assert gate.enter("a", INTERACTIVE)
    assert gate.enter("a", INTERACTIVE)
    assert not gate.enter("a", INTERACTIVE)
    waiting = asyncio.ensure_future(wait(gate))
    await settle()
    assert not waiting.done()
    gate.leave("a", INTERACTIVE, 1.0)
    await waiting
    assert gate.taken == 2
    gate.leave("a", INTERACTIVE, 1.0)
    gate.leave("a", INTERACTIVE, 1.0)
    assert gate.taken == 0
    assert len(gate.queue) == 0


async def test_new_slots_let_those_in_who_wait() -> None:
    gate = make_gate(0)
    waiting = [asyncio.ensure_future(wait(gate)) for _ in range(3)]
    await settle()
    gate.resize(2)
    await settle()
    assert sorted(task.done() for task in waiting) == [False, True, True]
    gate.resize(None)
    await asyncio.gather(*waiting)


async def test_waiting_is_bounded_in_number_and_time() -> None:
    gate = make_gate(1)
    gate.enter("a", INTERACTIVE)
    waiting = [asyncio.ensure_future(wait(gate, most=2, timeout_s=0.05)) for _ in range(2)]
    await settle()
    with pytest.raises(WireError, match="2 requests wait") as full:
        await wait(gate, most=2)
    assert (full.value.status, full.value.code) == (503, "queue_full")
    for task in waiting:
        with pytest.raises(WireError, match=r"had room within 0\.05 s") as late:
            await task
        assert late.value.code == "queue_timeout"
        assert late.value.retry_after_s
    assert len(gate.queue) == 0
    assert gate.taken == 1


async def test_a_batch_gives_its_place_in_the_queue_away() -> None:
    gate = make_gate(1)
    gate.enter("a", INTERACTIVE)
    batch = asyncio.ensure_future(wait(gate, "a", BATCH, most=1))
    await settle()
    urgent = asyncio.ensure_future(wait(gate, "b", most=1))
    await settle()
    with pytest.raises(WireError, match="wait for a free replica"):
        await batch
    gate.leave("a", INTERACTIVE, 1.0)
    await urgent


async def test_batches_go_last_and_leave_some_slots() -> None:
    gate = make_gate(20)
    held = 0
    while gate.enter("a", BATCH):
        held += 1
    assert held == 18
    batch = asyncio.ensure_future(wait(gate, "a", BATCH))
    await settle()
    assert gate.enter("a", INTERACTIVE)
    assert gate.enter("a", INTERACTIVE)
    assert not gate.enter("a", INTERACTIVE)
    urgent = asyncio.ensure_future(wait(gate, "a"))
    await settle()
    gate.leave("a", BATCH, 1.0)
    await settle()
    assert urgent.done()
    assert not batch.done()
    batch.cancel()
    await asyncio.gather(batch, return_exceptions=True)


async def test_the_last_slots_are_kept_for_tenants_below_their_share() -> None:
    gate = make_gate(10)
    assert gate.enter("modest", INTERACTIVE)
    gate.leave("modest", INTERACTIVE, 0.1)
    held = 0
    while gate.enter("greedy", INTERACTIVE):
        held += 1
    assert held == 7
    backlog = [asyncio.ensure_future(wait(gate, "greedy")) for _ in range(5)]
    await settle()
    assert not any(task.done() for task in backlog)
    # Though others wait, it goes in at once.
    assert gate.enter("modest", INTERACTIVE)
    gate.leave("modest", INTERACTIVE, 0.1)
    await settle()
    assert not any(task.done() for task in backlog)
    gate.leave("greedy", INTERACTIVE, 0.1)
    await settle()
    assert sum(task.done() for task in backlog) == 1
    for task in backlog:
        task.cancel()
    await asyncio.gather(*backlog, return_exceptions=True)


async def test_one_tenant_alone_gets_every_slot() -> None:
    gate = make_gate(10)
    for _ in range(10):
        assert gate.enter("only", INTERACTIVE)


async def test_whoever_goes_while_it_waits_leaves_no_trace() -> None:
    gate = make_gate(1)
    gate.enter("a", INTERACTIVE)
    tasks = [asyncio.ensure_future(wait(gate, "b")) for _ in range(10)]
    await settle()
    for task in tasks[:5]:
        task.cancel()
    await settle()
    assert len(gate.queue) == 5
    # One is let in and cancelled in the same turn: its slot goes on to the next.
    gate.leave("a", INTERACTIVE, 1.0)
    for task in tasks[5:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert gate.taken == 0
    assert gate.enter("a", INTERACTIVE)


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    clock = [100.0]
    gate = make_gate(2, clock)
    for _ in range(2):
        gate.enter("a", INTERACTIVE)
    for _ in range(2):
        gate.leave("a", INTERACTIVE, 4.0)
        gate.enter("a", INTERACTIVE)
    gate.note_begin(0.5)
    assert gate.estimate_wait_s("b", INTERACTIVE) == pytest.approx(2.0)
    with pytest.raises(WireError, match=r"would begin in about 2\.5 s") as early:
        await wait(gate, "b", deadline_s=101.0)
    assert (early.value.status, early.value.code) == (503, "deadline_unreachable")
    assert early.value.retry_after_s == pytest.approx(2.0)
    patient = asyncio.ensure_future(wait(gate, "b", deadline_s=103.0))
    await settle()
    assert not patient.done()
    # Time passes, nothing becomes free: it leaves when there is no use in waiting any more.
    clock[0] = 102.8
    gate.sweep()
    with pytest.raises(WireError) as late:
        await patient
    assert late.value.code == "deadline_unreachable"
    assert len(gate.queue) == 0


async def test_a_deadline_that_passes_is_a_504() -> None:
    gate = Gate("m")
    gate.resize(1)
    gate.enter("a", INTERACTIVE)
    with pytest.raises(WireError) as late:
        await wait(gate, deadline_s=gate._clock() + 0.05)
    assert (late.value.status, late.value.code) == (504, "deadline_exceeded")
    assert len(gate.queue) == 0


async def test_under_a_storm_no_slot_is_lost_and_tenants_get_alike() -> None:
    gate = Gate("m")
    gate.resize(8)
    rng = random.Random(3)
    served: Counter[str] = Counter()
    most = 0

    async def one(tenant: str) -> None:
        nonlocal most
        if not gate.enter(tenant, INTERACTIVE):
            await wait(gate, tenant, most=10_000)
        most = max(most, gate.taken)
        try:
            await asyncio.sleep(rng.random() * 0.002)
            if sum(served.values()) < 400:
                served[tenant] += 1
        finally:
            gate.leave(tenant, INTERACTIVE, 0.001)

    tasks = [asyncio.ensure_future(one("greedy")) for _ in range(900)]
    tasks += [asyncio.ensure_future(one(name)) for _ in range(150) for name in ("b", "c")]
    cancelled = rng.sample(tasks, 60)
    await asyncio.sleep(0.005)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 8
    assert gate.taken == 0
    assert min(served.values()) > 80


def test_who_holds_much_may_be_asked_to_wait_at_the_replica() -> None:
    gate = make_gate(8)
    for _ in range(4):
        assert gate.enter("greedy", INTERACTIVE)
    assert not gate.holds_much("greedy"), "nobody else is about"
    assert gate.enter("modest", INTERACTIVE)
    assert gate.holds_much("greedy")
    assert not gate.holds_much("modest")
    assert not gate.holds_much("new")


async def test_slots_that_wait_at_a_replica_keep_nobody_out() -> None:
    gate = make_gate(8)
    assert gate.enter("modest", INTERACTIVE)
    held = 0
    while gate.enter("greedy", INTERACTIVE):
        held += 1
    assert gate.holds_much("greedy")
    others = [name for name in ("a", "b", "c") if gate.enter(name, INTERACTIVE)]
    assert gate.taken == 8
    waiting = asyncio.ensure_future(wait(gate, "late"))
    backlog = asyncio.ensure_future(wait(gate, "greedy"))
    await settle()
    assert not waiting.done()
    gate.begin_idle()  # one of the greedy one's waits at its replica
    await settle()
    assert waiting.done()
    assert not backlog.done(), "only for who has less than a share"
    assert gate.taken == 9
    assert not gate.enter("later", INTERACTIVE)
    gate.end_idle()
    gate.leave("greedy", INTERACTIVE, 0.1)
    await settle()
    assert gate.taken == 8, "what was lent is paid back first"
    assert not backlog.done()
    for name in ["late", "modest", *others, *["greedy"] * (held - 1)]:
        gate.leave(name, INTERACTIVE, 0.1)
    await settle()
    assert backlog.done()
    gate.leave("greedy", INTERACTIVE, 0.1)
    assert gate.taken == 0
