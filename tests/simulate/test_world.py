"""Simulated fleets: nothing is lost, the same seed gives the same result, queues obey theory."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.gateway.routing import POLICIES
from thrifty.simulate.outcome import Outcome
from thrifty.simulate.rates import ReplicaRates
from thrifty.simulate.scaler import Bounds, FixedCount, Objective, Seen
from thrifty.simulate.trace import TraceRequest
from thrifty.simulate.world import Setup, make_router_blocks, simulate

ENGINE = ReplicaRates(
    "engine", slots=8, tpot_s={1: 0.01, 8: 0.02}, prefill_s=0.0005, fixed_s=0.005,
    chunk_tokens=256, cache_tokens=20_000, start_s=5.0, price_per_hour=2.0,
)  # fmt: skip


def make_requests(
    count: int, rate: float, seed: int = 0, *, prompt: int = 300, answer: int = 30
) -> Iterator[TraceRequest]:
    """Poisson arrivals with lengths that vary, in conversations that share beginnings."""
    rng = random.Random(seed)
    at_s = 0.0
    for _ in range(count):
        conversation = rng.randrange(1, 20)
        length = rng.randint(1, 2 * prompt)
        blocks = tuple((conversation << 20) + n for n in range(length // 64))
        yield TraceRequest(
            at_s, length, rng.randint(1, 2 * answer), blocks, 64, conversation,
            f"t{conversation % 3}",
        )  # fmt: skip
        at_s += rng.expovariate(rate)


def run(
    requests: Iterator[TraceRequest],
    count: int = 2,
    rates: ReplicaRates = ENGINE,
    **others: object,
) -> Outcome:
    setup = Setup(rates, Objective(0.5, 0.05), Bounds(count, count), **others)  # type: ignore[arg-type]
    return simulate(requests, setup, FixedCount(count), "fixed")


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6),
    rate=st.floats(0.5, 200),
    routing=st.sampled_from(sorted(POLICIES)),
    waiting=st.integers(0, 40),
    wait_timeout_s=st.floats(0.0, 20),
    chunk=st.sampled_from([0, 16, 256]),
    slots=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_every_request_is_answered_or_refused_once(
    count: int, rate: float, routing: str, waiting: int, wait_timeout_s: float, chunk: int,
    slots: int, seed: int,
) -> None:  # fmt: skip
    from msgspec.structs import replace

    rates = replace(ENGINE, chunk_tokens=chunk, slots=slots)
    found = run(
        make_requests(150, rate, seed), count, rates,
        routing=routing, waiting=waiting, wait_timeout_s=wait_timeout_s, seed=seed,
    )  # fmt: skip
    assert found.requests == 150 == found.answered + found.refused
    assert sum(moment.arrived for moment in found.timeline) == 150
    assert 0 <= found.slo_attainment <= found.answered / 150
    assert found.ttft_p50_s >= (ENGINE.fixed_s if found.answered else 0)
    assert found.ttft_p50_s <= found.ttft_p95_s <= found.ttft_p99_s


def test_the_same_seed_gives_the_same_result() -> None:
    first, again, other = (
        run(make_requests(300, 40), 8, seed=seed, routing="power_of_two") for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_one_replica_with_one_slot_waits_as_an_m_d_1_queue_does() -> None:
    """Mean waiting time of M/D/1: rho D / 2 (1 - rho), Pollaczek and Khinchine."""
    service_s, load = 0.1, 0.7
    rates = ReplicaRates("one", slots=1, tpot_s={1: 0.01}, fixed_s=service_s)
    rng = random.Random(3)

    def arrivals() -> Iterator[TraceRequest]:
        at_s = 0.0
        for _ in range(20_000):
            yield TraceRequest(at_s, 10, 1)
            at_s += rng.expovariate(load / service_s)

    found = run(arrivals(), 1, rates, waiting=10**6, wait_timeout_s=1e6)
    expected_s = load * service_s / (2 * (1 - load))
    assert found.refused == 0
    # The standard error of the mean of 20,000 correlated waits is about 4%.
    assert found.ttft_mean_s - service_s == pytest.approx(expected_s, rel=0.1)


def test_times_of_one_request_are_those_of_the_rates() -> None:
    prompt, answer = 600, 21
    found = run(iter([TraceRequest(0.0, prompt, answer)]), 1)
    assert found.ttft_p50_s == pytest.approx(ENGINE.fixed_s + prompt * ENGINE.prefill_s)
    assert found.tpot_p50_s == pytest.approx(ENGINE.tpot_at(1))
    assert found.duration_s == pytest.approx(found.ttft_p50_s + 20 * ENGINE.tpot_at(1))
    assert found.cost == pytest.approx(found.duration_s / 3600 * 2.0)


def test_answers_slow_down_together_and_prompts_slow_them_further() -> None:
    eight = run(iter([TraceRequest(0.0, 1, 101)] * 8), 1)
    assert eight.tpot_p50_s == pytest.approx(ENGINE.tpot_at(8), rel=0.02)
    # A prompt of 2,560 tokens takes eleven steps, as one token of each takes the answer's place.
    disturbed = run(iter([TraceRequest(0.0, 1, 101), TraceRequest(0.2, 2560, 1)]), 1)
    extra_s = 2560 * ENGINE.prefill_s
    assert disturbed.tpot_p95_s == pytest.approx(ENGINE.tpot_at(1) + extra_s / 100, rel=0.05)


def test_a_cached_beginning_is_not_computed_again() -> None:
    blocks = tuple(range(1, 11))
    turns = [TraceRequest(at, 700, 2, blocks, 64, 1) for at in (0.0, 5.0)]
    found = run(iter(turns), 1)
    assert found.cached_share == pytest.approx(640 / 1400)
    assert found.ttft_p50_s == pytest.approx(ENGINE.fixed_s + (700 + 60) / 2 * ENGINE.prefill_s)


def test_what_happens_in_the_warm_up_does_not_count() -> None:
    early = [TraceRequest(0.0, 10, 5)] * 3
    late = [TraceRequest(100.0, 10, 5)] * 2
    setup = Setup(ENGINE, Objective(1.0), Bounds(0, 2), first=0, warm_up_s=60.0)
    found = simulate(iter(early + late), setup, Steps(0, 2, 1), "late")
    assert (found.requests, found.answered, found.slo_attainment) == (2, 2, 1.0)
    assert found.ttft_p99_s < 1
    # Up and down came before; one replica is there from then on.
    assert found.changes_of_direction_per_hour == 0
    assert (found.min_replicas, found.max_replicas) == (1, 1)
    assert found.replica_hours * 3600 == pytest.approx(found.duration_s)
    assert sum(moment.arrived for moment in found.timeline) == 5


class Steps:
    """Wants what it is told, in turn."""

    interval_s = 10.0
    wakes_at_once = False

    def __init__(self, *counts: int) -> None:
        self._counts = list(counts)
        self.seen: list[Seen] = []

    def decide(self, seen: Seen) -> int:
        self.seen.append(seen)
        return self._counts.pop(0) if len(self._counts) > 1 else self._counts[0]


def test_replicas_that_go_end_their_answers_and_count_until_then() -> None:
    scaler = Steps(3, 3, 1, 1, 9)
    setup = Setup(ENGINE, Objective(5.0), Bounds(1, 4))
    found = simulate(make_requests(500, 10, answer=60), setup, scaler, "steps")
    assert found.answered == 500
    assert found.max_replicas == 4
    assert [seen.starting for seen in scaler.seen[:2]] == [0, 0]
    assert found.changes_of_direction_per_hour == pytest.approx(2 / (found.duration_s / 3600))
    assert all(seen.ready + seen.starting + seen.draining <= 4 for seen in scaler.seen)
    assert sum(seen.arrived for seen in scaler.seen) <= 500


def test_requests_wait_at_zero_until_a_replica_is_ready() -> None:
    setup = Setup(ENGINE, Objective(60.0), Bounds(0, 2), first=0)
    found = simulate(iter([TraceRequest(0.0, 10, 5)] * 3), setup, Steps(0, 1), "wakes")
    assert found.answered == 3
    # Wanted at 10 s, ready after 5 s, known to the gateway within 0.2 s.
    assert 15.0 < found.ttft_p50_s < 15.5
    timed_out = simulate(iter([TraceRequest(0.0, 10, 5)] * 3), setup, Steps(0), "sleeps")
    assert (timed_out.answered, timed_out.refused) == (0, 3)


def test_routers_blocks_are_equal_where_prompts_are() -> None:
    """Whatever the size of the trace's blocks, with lengths scaled or not."""
    for size in (16.0, 64.0, 51.2, 512.0):
        first = TraceRequest(0.0, 4000, 1, (1, 2, 3, 4, 5, 6, 7, 8), size)
        second = first._replace(blocks=(1, 2, 3, 4, 5, 9, 10, 11))
        here, there = make_router_blocks(first), make_router_blocks(second)
        shared = next(n for n, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
        assert len(here) == int(8 * size / 64)
        assert shared == int(5 * size / 64)
        assert len(set(here)) == len(here)


def test_prefix_routing_finds_what_is_cached() -> None:
    results = {
        routing: run(make_requests(600, 30, prompt=900), 4, routing=routing, seed=1)
        for routing in ("auto", "round_robin")
    }
    assert results["auto"].cached_share > results["round_robin"].cached_share
    assert results["auto"].ttft_mean_s < results["round_robin"].ttft_mean_s
