"""The concurrency limiter: slots, waiting, priorities, reserved slots, deadlines."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from thrifty.gateway.state.concurrency import ConcurrencyLimiter
from thrifty.gateway.state.fair_queue import BATCH, INTERACTIVE
from thrifty.openai.errors import WireError


def make_gate(capacity: int | None, clock: list[float] | None = None) -> ConcurrencyLimiter:
    time = clock or [100.0]
    concurrency = ConcurrencyLimiter("m", lambda: time[0])
    concurrency.resize(capacity)
    return concurrency


async def wait(
    concurrency: ConcurrencyLimiter,
    tenant: str = "a",
    priority: int = INTERACTIVE,
    *,
    cost: int = 100,
    most: int = 100,
    timeout_s: float = 5.0,
    deadline_s: float = 0.0,
) -> None:
    await concurrency.wait(
        tenant, cost, priority, most=most, timeout_s=timeout_s, deadline_s=deadline_s
    )


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_slots_are_taken_and_released() -> None:
    concurrency = make_gate(2)
    assert concurrency.enter("a", INTERACTIVE)
    assert concurrency.enter("a", INTERACTIVE)
    assert not concurrency.enter("a", INTERACTIVE)
    waiting = asyncio.ensure_future(wait(concurrency))
    await settle()
    assert not waiting.done()
    concurrency.leave("a", INTERACTIVE, 1.0)
    await waiting
    assert concurrency.taken == 2
    concurrency.leave("a", INTERACTIVE, 1.0)
    concurrency.leave("a", INTERACTIVE, 1.0)
    assert concurrency.taken == 0
    assert len(concurrency.queue) == 0


async def test_new_slots_admit_waiting_requests() -> None:
    concurrency = make_gate(0)
    waiting = [asyncio.ensure_future(wait(concurrency)) for _ in range(3)]
    await settle()
    concurrency.resize(2)
    await settle()
    assert sorted(task.done() for task in waiting) == [False, True, True]
    concurrency.resize(None)
    await asyncio.gather(*waiting)


async def test_waiting_is_bounded_in_number_and_time() -> None:
    concurrency = make_gate(1)
    concurrency.enter("a", INTERACTIVE)
    waiting = [asyncio.ensure_future(wait(concurrency, most=2, timeout_s=0.05)) for _ in range(2)]
    await settle()
    with pytest.raises(WireError, match="2 requests are already waiting") as full:
        await wait(concurrency, most=2)
    assert (full.value.status, full.value.code) == (503, "queue_full")
    for task in waiting:
        with pytest.raises(WireError, match=r"had a free slot within 0\.05 s") as late:
            await task
        assert late.value.code == "queue_timeout"
        assert late.value.retry_after_s
    assert len(concurrency.queue) == 0
    assert concurrency.taken == 1


async def test_a_batch_request_is_evicted_from_a_full_queue() -> None:
    concurrency = make_gate(1)
    concurrency.enter("a", INTERACTIVE)
    batch = asyncio.ensure_future(wait(concurrency, "a", BATCH, most=1))
    await settle()
    urgent = asyncio.ensure_future(wait(concurrency, "b", most=1))
    await settle()
    with pytest.raises(WireError, match="waiting for a free replica"):
        await batch
    concurrency.leave("a", INTERACTIVE, 1.0)
    await urgent


async def test_batch_requests_go_last_and_leave_reserved_slots() -> None:
    concurrency = make_gate(20)
    held = 0
    while concurrency.enter("a", BATCH):
        held += 1
    assert held == 18
    batch = asyncio.ensure_future(wait(concurrency, "a", BATCH))
    await settle()
    assert concurrency.enter("a", INTERACTIVE)
    assert concurrency.enter("a", INTERACTIVE)
    assert not concurrency.enter("a", INTERACTIVE)
    urgent = asyncio.ensure_future(wait(concurrency, "a"))
    await settle()
    concurrency.leave("a", BATCH, 1.0)
    await settle()
    assert urgent.done()
    assert not batch.done()
    batch.cancel()
    await asyncio.gather(batch, return_exceptions=True)


async def test_reserved_slots_go_to_tenants_below_their_share() -> None:
    concurrency = make_gate(10)
    assert concurrency.enter("modest", INTERACTIVE)
    concurrency.leave("modest", INTERACTIVE, 0.1)
    held = 0
    while concurrency.enter("greedy", INTERACTIVE):
        held += 1
    assert held == 7
    backlog = [asyncio.ensure_future(wait(concurrency, "greedy")) for _ in range(5)]
    await settle()
    assert not any(task.done() for task in backlog)
    # It is admitted at once, although others wait.
    assert concurrency.enter("modest", INTERACTIVE)
    concurrency.leave("modest", INTERACTIVE, 0.1)
    await settle()
    assert not any(task.done() for task in backlog)
    concurrency.leave("greedy", INTERACTIVE, 0.1)
    await settle()
    assert sum(task.done() for task in backlog) == 1
    for task in backlog:
        task.cancel()
    await asyncio.gather(*backlog, return_exceptions=True)


async def test_one_tenant_alone_gets_every_slot() -> None:
    concurrency = make_gate(10)
    for _ in range(10):
        assert concurrency.enter("only", INTERACTIVE)


async def test_a_cancelled_wait_leaves_no_trace() -> None:
    concurrency = make_gate(1)
    concurrency.enter("a", INTERACTIVE)
    tasks = [asyncio.ensure_future(wait(concurrency, "b")) for _ in range(10)]
    await settle()
    for task in tasks[:5]:
        task.cancel()
    await settle()
    assert len(concurrency.queue) == 5
    # One is admitted and cancelled in the same turn: its slot goes to the next.
    concurrency.leave("a", INTERACTIVE, 1.0)
    for task in tasks[5:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert concurrency.taken == 0
    assert concurrency.enter("a", INTERACTIVE)


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    clock = [100.0]
    concurrency = make_gate(2, clock)
    for _ in range(2):
        concurrency.enter("a", INTERACTIVE)
    for _ in range(2):
        concurrency.leave("a", INTERACTIVE, 4.0)
        concurrency.enter("a", INTERACTIVE)
    concurrency.note_begin(0.5)
    assert concurrency.estimate_wait_s("b", INTERACTIVE) == pytest.approx(2.0)
    with pytest.raises(WireError, match=r"would begin in about 2\.5 s") as early:
        await wait(concurrency, "b", deadline_s=101.0)
    assert (early.value.status, early.value.code) == (503, "deadline_unreachable")
    assert early.value.retry_after_s == pytest.approx(2.0)
    patient = asyncio.ensure_future(wait(concurrency, "b", deadline_s=103.0))
    await settle()
    assert not patient.done()
    # Time passes and no slot becomes free: it leaves once waiting longer is pointless.
    clock[0] = 102.8
    concurrency.sweep()
    with pytest.raises(WireError) as late:
        await patient
    assert late.value.code == "deadline_unreachable"
    assert len(concurrency.queue) == 0


async def test_a_deadline_that_passes_is_a_504() -> None:
    concurrency = ConcurrencyLimiter("m")
    concurrency.resize(1)
    concurrency.enter("a", INTERACTIVE)
    with pytest.raises(WireError) as late:
        await wait(concurrency, deadline_s=concurrency._clock() + 0.05)
    assert (late.value.status, late.value.code) == (504, "deadline_exceeded")
    assert len(concurrency.queue) == 0


async def test_no_slot_is_lost_under_load_and_tenants_get_equal_shares() -> None:
    concurrency = ConcurrencyLimiter("m")
    concurrency.resize(8)
    rng = random.Random(3)
    served: Counter[str] = Counter()
    most = 0

    async def one(tenant: str) -> None:
        nonlocal most
        if not concurrency.enter(tenant, INTERACTIVE):
            await wait(concurrency, tenant, most=10_000)
        most = max(most, concurrency.taken)
        try:
            await asyncio.sleep(rng.random() * 0.002)
            if sum(served.values()) < 400:
                served[tenant] += 1
        finally:
            concurrency.leave(tenant, INTERACTIVE, 0.001)

    tasks = [asyncio.ensure_future(one("greedy")) for _ in range(900)]
    tasks += [asyncio.ensure_future(one(name)) for _ in range(150) for name in ("b", "c")]
    cancelled = rng.sample(tasks, 60)
    await asyncio.sleep(0.005)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 8
    assert concurrency.taken == 0
    assert min(served.values()) > 80


def test_large_tenants_may_wait_at_the_replica() -> None:
    concurrency = make_gate(8)
    for _ in range(4):
        assert concurrency.enter("greedy", INTERACTIVE)
    assert not concurrency.holds_fair_share("greedy"), "nobody else is about"
    assert concurrency.enter("modest", INTERACTIVE)
    assert concurrency.holds_fair_share("greedy")
    assert not concurrency.holds_fair_share("modest")
    assert not concurrency.holds_fair_share("new")


async def test_idle_slots_block_no_one() -> None:
    concurrency = make_gate(8)
    assert concurrency.enter("modest", INTERACTIVE)
    held = 0
    while concurrency.enter("greedy", INTERACTIVE):
        held += 1
    assert concurrency.holds_fair_share("greedy")
    others = [name for name in ("a", "b", "c") if concurrency.enter(name, INTERACTIVE)]
    assert concurrency.taken == 8
    waiting = asyncio.ensure_future(wait(concurrency, "late"))
    backlog = asyncio.ensure_future(wait(concurrency, "greedy"))
    await settle()
    assert not waiting.done()
    concurrency.begin_idle()  # one of the greedy one's waits at its replica
    await settle()
    assert waiting.done()
    assert not backlog.done(), "only for who has less than a share"
    assert concurrency.taken == 9
    assert not concurrency.enter("later", INTERACTIVE)
    concurrency.end_idle()
    concurrency.leave("greedy", INTERACTIVE, 0.1)
    await settle()
    assert concurrency.taken == 8, "what was lent is paid back first"
    assert not backlog.done()
    for name in ["late", "modest", *others, *["greedy"] * (held - 1)]:
        concurrency.leave(name, INTERACTIVE, 0.1)
    await settle()
    assert backlog.done()
    concurrency.leave("greedy", INTERACTIVE, 0.1)
    assert concurrency.taken == 0
