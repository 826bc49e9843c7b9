"""Counts of keys against a slow, obvious reference, and against the scripts that Redis runs."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.redis_server import running_redis
from thrifty.db.keys import KeyLimits
from thrifty.gateway.admission.counts import SLOT_S, Grant, KeyCounts, Limit, QuotaRequest, Refusal
from thrifty.gateway.admission.shared_counts import SharedCounts, SharedGrant
from thrifty.gateway.state.shared_store import SharedStore

DAY = "2026-11-23"
GAPS = st.floats(0, 30, allow_nan=False)


def ask(tokens: int = 1, cost: float = 0.0, day: float = 0.0, month: float = 0.0) -> QuotaRequest:
    return QuotaRequest(tokens, cost, day, month)


@given(st.integers(1, 20), st.lists(GAPS, max_size=150))
def test_no_minute_has_more_requests_than_the_limit(rpm: int, gaps: list[float]) -> None:
    counts, now_s, granted = KeyCounts(), 1000.0, []
    for gap in gaps:
        now_s += gap
        taken = counts.take(KeyLimits(rpm=rpm), ask(), now_s)
        lately = [at for at in granted if at > now_s - 60]
        if isinstance(taken, Refusal):
            # The refusal is justified: a minute plus one slot of two seconds is full.
            wider = [at for at in granted if at > now_s - 60 - 2 * SLOT_S]
            assert len(wider) >= rpm
            assert taken.limit is Limit.REQUESTS
            assert taken.retry_after_s is not None
            assert 0 <= taken.retry_after_s <= 60 + SLOT_S
        else:
            assert len(lately) < rpm
            granted.append(now_s)


@given(st.lists(st.tuples(GAPS, st.integers(1, 50)), min_size=1, max_size=80))
def test_a_client_that_honours_retry_after_passes(steps: list[tuple[float, int]]) -> None:
    limits = KeyLimits(rpm=5, tpm=100)
    counts, now_s = KeyCounts(), 0.0
    for gap, tokens in steps:
        now_s += gap
        taken = counts.take(limits, ask(tokens), now_s)
        if isinstance(taken, Refusal):
            assert taken.retry_after_s is not None
            now_s += taken.retry_after_s + 1e-6
            second = counts.take(limits, ask(tokens), now_s)
            if isinstance(second, Refusal):
                # The other limit may be exceeded too, but no third one.
                assert second.limit is not taken.limit
                assert second.retry_after_s is not None
                now_s += second.retry_after_s + 1e-6
                assert isinstance(counts.take(limits, ask(tokens), now_s), Grant)


@given(
    st.integers(10, 200),
    st.lists(st.tuples(GAPS, st.integers(1, 300), st.integers(0, 300), st.integers(0, 5)), max_size=80),
)  # fmt: skip
def test_tokens_are_reserved_and_corrected(
    tpm: int, steps: list[tuple[float, int, int, int]]
) -> None:
    """The count is never below the usage of the requests that ended in the last minute."""
    counts, now_s = KeyCounts(), 0.0
    running: list[tuple[Grant, int]] = []
    taken_at: list[tuple[float, int]] = []
    for gap, estimate, actual, ends in steps:
        now_s += gap
        for _ in range(min(ends, len(running))):
            grant, tokens = running.pop(0)
            counts.settle(grant, tokens, now_s)
        taken = counts.take(KeyLimits(tpm=tpm), ask(estimate), now_s)
        if isinstance(taken, Grant):
            assert taken.usage.tokens <= tpm
            running.append((taken, actual))
            taken_at.append((now_s, actual))
        assert counts.tokens.total >= 0
    for grant, tokens in running:
        counts.settle(grant, tokens, now_s)
    counts.tokens.trim(int(now_s // SLOT_S))
    assert counts.tokens.total >= sum(t for at, t in taken_at if at > now_s - 60)
    assert not counts.running


def test_concurrency_is_released() -> None:
    counts, limits = KeyCounts(), KeyLimits(concurrency=2)
    grants = [counts.take(limits, ask(), 0.0) for _ in range(2)]
    refused = counts.take(limits, ask(), 0.0)
    assert isinstance(refused, Refusal)
    assert (refused.limit, refused.used) == (Limit.CONCURRENCY, 2)
    assert isinstance(grants[0], Grant)
    counts.settle(grants[0], 1, 0.0)
    counts.settle(grants[0], 1, 0.0)  # twice is once
    assert isinstance(counts.take(limits, ask(), 0.0), Grant)
    assert isinstance(counts.take(limits, ask(), 0.0), Refusal)


def test_reservations_prevent_concurrent_overspending() -> None:
    counts, limits = KeyCounts(), KeyLimits(budget_day=1.0)
    grants = [counts.take(limits, ask(cost=0.3), 0.0) for _ in range(5)]
    assert [isinstance(g, Grant) for g in grants] == [True, True, True, False, False]
    refused = grants[3]
    assert isinstance(refused, Refusal)
    assert refused.limit is Limit.BUDGET_DAY
    assert refused.retry_after_s is not None  # others run, and may cost less than reserved


def test_a_request_alone_may_exceed_the_rest_of_a_budget() -> None:
    counts, limits = KeyCounts(), KeyLimits(budget_month=1.0)
    first = counts.take(limits, ask(cost=50.0, month=0.9), 0.0)
    assert isinstance(first, Grant)
    assert isinstance(counts.take(limits, ask(cost=0.01, month=0.9), 0.0), Refusal)
    counts.settle(first, 1, 0.0)
    spent = counts.take(limits, ask(month=1.2), 0.0)
    assert isinstance(spent, Refusal)
    assert (spent.limit, spent.retry_after_s) == (Limit.BUDGET_MONTH, None)


# The same in Redis


async def test_redis_counts_like_this_process() -> None:
    cases = [
        KeyLimits(rpm=3),
        KeyLimits(tpm=100),
        KeyLimits(concurrency=2),
        KeyLimits(budget_day=1.0),
        KeyLimits(budget_month=1.0),
        KeyLimits(rpm=4, tpm=90, concurrency=3, budget_day=1.0, budget_month=2.0),
    ]
    sizes = [(30, 0.3), (40, 0.3), (50, 0.3), (20, 0.5), (10, 0.1)] * 3
    asks = [ask(tokens, cost, 0.1, 0.1) for tokens, cost in sizes]
    with running_redis() as server:
        store = SharedStore(server.url, timeout_s=1.0)
        await store.start()
        shared = SharedCounts(store)
        for number, limits in enumerate(cases):
            counts, key = KeyCounts(), f"key{number}"
            pairs: list[tuple[Grant, SharedGrant]] = []
            for index, wanted in enumerate(asks):
                here = counts.take(limits, wanted, 1000.0)
                there = await shared.take(key, limits, wanted, DAY)
                assert there is not None
                if isinstance(here, Refusal):
                    assert isinstance(there, Refusal), (limits, index)
                    assert there.limit is here.limit
                    assert there.used == pytest.approx(here.used)
                    assert (there.retry_after_s is None) == (here.retry_after_s is None)
                else:
                    assert isinstance(there, SharedGrant), (limits, index)
                    assert isinstance(here, Grant)
                    assert (there.tokens, there.usage.tokens) == (here.tokens, here.usage.tokens)
                    assert there.usage.requests == here.usage.requests
                    pairs.append((here, there))
                if index % 4 == 3 and pairs:
                    one, other = pairs.pop(0)
                    counts.settle(one, 25, 1000.0)
                    shared.settle(key, other, 25, 0.0, DAY)
                    await shared.finish()
        await store.close()


async def test_workers_together_never_exceed_the_limit() -> None:
    """Four workers count concurrently; the sum is exact."""
    limits = KeyLimits(rpm=50, tpm=10_000, concurrency=1000)
    with running_redis() as server:
        stores = [SharedStore(server.url, timeout_s=2.0) for _ in range(4)]
        workers = []
        for store in stores:
            await store.start()
            workers.append(SharedCounts(store))
        taken = await asyncio.gather(
            *(worker.take("k", limits, ask(10), DAY) for _ in range(50) for worker in workers)
        )
        assert sum(isinstance(t, SharedGrant) for t in taken) == 50
        assert all(t is not None for t in taken)
        for store in stores:
            await store.close()


async def test_budgets_in_redis_are_never_below_the_database() -> None:
    limits = KeyLimits(budget_day=1.0)
    with running_redis() as server:
        store = SharedStore(server.url, timeout_s=1.0)
        await store.start()
        one, two = SharedCounts(store), SharedCounts(store)
        grants = await asyncio.gather(
            *(worker.take("k", limits, ask(1, 0.2), DAY) for worker in (one, two) for _ in range(4))
        )
        granted = [g for g in grants if isinstance(g, SharedGrant)]
        assert len(granted) == 5
        for grant in granted:
            one.settle("k", grant, 1, 0.1, DAY)
        await one.finish()
        # Half of it is spent. The database knows a larger sum, from before Redis was used.
        assert isinstance(await two.take("k", limits, ask(1, 0.2), DAY), SharedGrant)
        refused = await two.take("k", limits, ask(1, 0.2, day=1.5, month=1.5), DAY)
        assert isinstance(refused, Refusal)
        assert (refused.limit, refused.used) == (Limit.BUDGET_DAY, 1.5)
        # All workers know it now; the next day starts at zero.
        assert isinstance(await one.take("k", limits, ask(1, 0.2), DAY), Refusal)
        assert isinstance(await one.take("k", limits, ask(1, 0.2), "2026-11-24"), SharedGrant)
        await store.close()


async def test_the_slots_of_a_dead_worker_are_freed() -> None:
    limits = KeyLimits(concurrency=1)
    with running_redis() as server:
        store = SharedStore(server.url, timeout_s=1.0)
        await store.start()
        dead, alive = SharedCounts(store), SharedCounts(store)
        taken = await dead.take("k", limits, ask(), DAY)
        assert isinstance(taken, SharedGrant)
        assert isinstance(await alive.take("k", limits, ask(), DAY), Refusal)
        # Pretend that its lease has expired.
        await store.run("ZADD", "thrifty:limits:{k}:running", 1, taken.id)
        assert isinstance(await alive.take("k", limits, ask(), DAY), SharedGrant)
        # A request that still runs renews its lease.
        dead.renew("k", [taken])
        await dead.finish()
        assert await store.run("ZCARD", "thrifty:limits:{k}:running") == 1
        for name in (b"window", b"running"):
            assert await store.run("TTL", b"thrifty:limits:{k}:" + name) > 0
        await store.close()


async def test_a_client_that_leaves_while_redis_counts_is_settled() -> None:
    limits = KeyLimits(concurrency=1)
    with running_redis() as server:
        store = SharedStore(server.url, timeout_s=1.0)
        await store.start()
        shared = SharedCounts(store)
        asking = asyncio.ensure_future(shared.take("k", limits, ask(), DAY))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        for _ in range(100):
            await shared.finish()
            if await store.run("ZCARD", "thrifty:limits:{k}:running") == 0:
                break
            await asyncio.sleep(0.01)
        assert isinstance(await shared.take("k", limits, ask(), DAY), SharedGrant)
        await store.close()
