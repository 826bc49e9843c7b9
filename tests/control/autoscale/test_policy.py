"""What the autoscaler must never do, whatever happens, and what it is for. Each invariant is
somebody's bug elsewhere.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.control.autoscale.world import World, count_turns
from thrifty.control.autoscale.policy import Autoscaler
from thrifty.control.autoscale.settings import Settings
from thrifty.control.autoscale.types import (
    Bounds,
    Demand,
    Objective,
    Observation,
    Resources,
)

Stretch = tuple[int, str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 3, 8, 25]),
        st.sampled_from(["fresh"] * 6 + ["stale", "ahead", "back", "bounds", "revision"]),
        st.integers(1, 15),
    ),
    min_size=1,
    max_size=12,
)
"""Stretches with so many requests a second, each with something that happens at its beginning."""
BOUNDS = st.tuples(st.integers(0, 4), st.integers(0, 6)).map(
    lambda pair: Bounds(pair[0], max(1, sum(pair)), 20.0)
)
FEW = settings(max_examples=12, deadline=None)


@FEW
@given(BOUNDS, BOUNDS, STEPS)
def test_never_beyond_the_bounds_with_what_starts(
    first: Bounds, then: Bounds, steps: list[Stretch]
) -> None:
    world = World(first, count=first.fewest)
    for arrivals, event, seconds in steps:
        if event == "bounds":
            world.bounds = then if world.bounds == first else first
        elif event == "revision":
            world.revision += "'"
        elif event in ("ahead", "back"):
            world.clock_s += 3600.0 if event == "ahead" else -3600.0
        for _ in range(seconds):
            decision = world.step(arrivals, stale=event == "stale")
            assert world.bounds.fewest <= decision.count <= world.bounds.most
            assert world.ready + world.starting <= world.bounds.most


@FEW
@given(st.integers(1, 6), st.integers(1, 40), st.booleans())
def test_from_nothing_to_one_at_once(most: int, arrivals: int, known: bool) -> None:
    world = World(Bounds(0, most, 5.0), count=1 if known else 0)
    for _ in range(12 if known else 0):
        world.step(4)
    while world.count:
        world.step()
    assert world.step().count == 0
    assert 1 <= world.step(arrivals).count <= most


@FEW
@given(BOUNDS, STEPS, st.integers(0, 6))
def test_without_traffic_never_up(bounds: Bounds, steps: list[Stretch], more: int) -> None:
    world = World(bounds, count=min(bounds.most, bounds.fewest + more), hold_s=0.2)
    for arrivals, _, seconds in steps:
        for _ in range(seconds):
            world.step(arrivals)
    while world.observe().demand.waiting or world.observe().demand.in_flight:  # type: ignore[union-attr]
        world.step()
    before = world.step().count
    for _ in range(200):
        count = world.step().count
        assert count <= before
        before = count


def test_at_zero_by_intent_it_stays_until_somebody_asks() -> None:
    world = World(Bounds(0, 4, 10.0), count=0)
    assert {world.step().count for _ in range(100)} == {0}
    world.step(1)
    for _ in range(9):
        assert world.step().count == 1
    for _ in range(30):
        world.step()
    assert world.count == 0


@FEW
@given(st.integers(10, 60), st.integers(2, 8))
def test_demand_is_what_arrives_not_what_is_answered(arrivals: int, most: int) -> None:
    """Replicas that answer nothing any more do not look idle."""
    world = World(Bounds(1, most))
    for _ in range(20):
        world.step(2)
    world.hold_s = math.inf
    for _ in range(30):
        decision = world.step(arrivals)
    assert decision.count == most


@FEW
@given(BOUNDS, STEPS)
def test_stale_figures_change_nothing(bounds: Bounds, steps: list[Stretch]) -> None:
    world = World(bounds, count=max(1, bounds.fewest))
    for arrivals, event, seconds in steps:
        for _ in range(seconds):
            before = world.count
            decision = world.step(arrivals, stale=event == "stale")
            if event == "stale":
                assert decision.count == before
                assert "no fresh figures" in decision.reason


@pytest.mark.parametrize(("count", "held", "then"), [(0, 2, 1), (0, 0, 0), (1, 2, 1), (3, 2, 3)])
def test_held_requests_wake_although_figures_are_missing(count: int, held: int, then: int) -> None:
    seen = Observation(("d", "v"), "r", Bounds(0, 4, 5.0), count, count, 0, None, held=held)
    (decision,) = Autoscaler().step(0.0, [seen])
    assert decision.count == then


@FEW
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30))
def test_totals_that_shrink_are_no_negative_rate(moves: list[int]) -> None:
    policy, total = Autoscaler(), 1000.0
    for now_s, move in enumerate(moves):
        total += move
        demand = Demand(total, total, 0, total, total, total, total, total, total, busy_s=total)
        seen = Observation(("d", "v"), "r", Bounds(1, 4), 1, 1, 0, demand, slots=4)
        decision = policy.step(float(now_s), [seen])[0]
        assert decision.arrivals_per_s >= 0.0
        assert 1 <= decision.count <= 4
        found = decision.prediction
        assert found is None or (found.utilisation >= 0.0 and found.concurrency >= 0.0)


def test_an_objective_below_what_a_replica_can_is_told_and_pins_nothing() -> None:
    world = World(Bounds(1, 8), Objective(0.01, None))
    for _ in range(60):
        decision = world.step(2)
    assert "ttft_p95 of 0.01 s cannot be reached" in (decision.unreachable or "")
    assert decision.count <= 2


@settings(max_examples=3, deadline=None)
@given(st.integers(15, 400), st.integers(15, 400), st.integers(12, 40), st.integers(0, 999))
def test_flapping_load_turns_the_number_twice_in_ten_minutes_at_most(
    on_s: int, off_s: int, rate: int, seed: int
) -> None:
    world, chance = World(Bounds(1, 8)), random.Random(seed)
    while len(world.counts) < 3600:
        for arrivals, mean_s in ((rate, on_s), (1, off_s)):
            for _ in range(chance.randint(1, 2 * mean_s)):
                world.step(arrivals)
    turns = count_turns(world.counts)
    assert max(world.counts) > 1
    for first, third in zip(turns, turns[2:], strict=False):
        assert third - first >= 600


@pytest.mark.parametrize("jump_s", [-7200.0, -5.0, 40.0, 86400.0])
def test_a_clock_that_jumps_changes_nothing(jump_s: float) -> None:
    worlds = World(Bounds(0, 6, 30.0)), World(Bounds(0, 6, 30.0))
    for second in range(200):
        if second in (50, 120):
            worlds[1].clock_s += jump_s
        steady, jumping = (world.step(8 if second < 150 else 0) for world in worlds)
        if second in (50, 120):
            assert "the clock jumped" in jumping.reason
        assert abs(steady.count - jumping.count) <= 1


# What it is for


@pytest.mark.parametrize(("rate", "enough"), [(2, 1), (10, 4), (24, 8)])
def test_it_holds_the_objective_with_few_replicas(rate: int, enough: int) -> None:
    world = World(Bounds(1, 16), Objective(0.5, None))
    for _ in range(300):
        world.step(rate)
    assert rate * world.hold_s / world.slots <= world.count <= enough + 1
    late = [wait_s for wait_s in world.waits_s[-100:] if wait_s + world.begin_s > 0.5]
    assert len(late) <= 5


def test_it_is_up_within_a_start_and_down_minutes_later() -> None:
    world = World(Bounds(1, 8), Objective(2.0, None))
    calm = itertools.cycle([0, 1, 4, 3, 2, 2])
    for _ in range(132):
        world.step(next(calm))
    assert world.count == 1
    for _ in range(5):
        world.step(20)
    assert world.count >= 5
    peak = world.count
    for _ in range(100):
        world.step(next(calm))
    assert world.count == peak
    for _ in range(1400):
        world.step(next(calm))
    assert world.count == 1


def test_it_is_ahead_of_a_rise_by_a_start() -> None:
    """A steady rise finds its replicas ready, although each takes 20 s to start."""
    world = World(Bounds(1, 16), Objective(1.0, None), start_s=20.0)
    for second in range(400):
        world.step(2 + second // 20)
    late = sum(wait_s > 1.0 for wait_s in world.waits_s[200:])
    assert late <= 0.05 * len(world.waits_s[200:])


def test_a_burst_on_nothing_starts_as_many_as_it_needs_once() -> None:
    world = World(Bounds(0, 8, 20.0), count=1)
    for _ in range(20):
        world.step(4)
    while world.count:
        world.step()
    world.step(24)
    counts = [world.step().count for _ in range(15)]
    assert counts == sorted(counts)
    assert 1 < max(counts) <= 7


def test_more_tokens_for_each_answer_need_more_replicas() -> None:
    world = World(Bounds(1, 16))
    for _ in range(60):
        world.step(6)
    before = world.count
    world.hold_s = 4.0
    for _ in range(120):
        world.step(6)
    assert world.count >= 2 * before


# Several versions within one capacity


def share(capacity: Resources, *wanted: tuple[int, int, int]) -> list[int]:
    """How many replicas versions get of one core each, that have (priority, rate, minimum)."""
    policy = Autoscaler()
    worlds = [
        World(Bounds(least, 8), count=max(1, least), key=("d", str(index)), need=Resources(1.0))
        for index, (_, _, least) in enumerate(wanted)
    ]
    for _ in range(120):
        for world, (_, rate, _) in zip(worlds, wanted, strict=True):
            world.live(rate)
        seen = [
            replace(world.observe(), priority=priority)
            for world, (priority, _, _) in zip(worlds, wanted, strict=True)
        ]
        for world, decision in zip(
            worlds, policy.step(worlds[0].clock_s, seen, capacity), strict=True
        ):
            world.obey(decision)
        assert sum(world.count for world in worlds) <= max(capacity.cpus, sum(w[2] for w in wanted))
    return [world.count for world in worlds]


CORES = Resources(6.0, math.inf, math.inf, math.inf)


def test_the_higher_priority_gets_its_replicas_first() -> None:
    assert share(CORES, (0, 20, 1), (1, 20, 1)) == [1, 5]
    assert share(CORES, (2, 20, 1), (1, 20, 1)) == [5, 1]


def test_equal_versions_share_by_what_a_replica_does() -> None:
    few, many = share(CORES, (0, 6, 1), (0, 30, 1))
    assert few + many == 6
    assert many > few


def test_the_fewest_run_whatever_there_is() -> None:
    assert share(CORES, (0, 20, 4), (9, 20, 3)) == [4, 3]


def test_what_there_is_no_room_for_is_told() -> None:
    world = World(Bounds(1, 8), need=Resources(memory_bytes=100.0))
    room = Resources(math.inf, math.inf, 250.0, math.inf)
    for _ in range(30):
        decision = world.step(30, capacity=room)
    assert (decision.count, decision.limit) == (2, "memory")
    assert "no room for more than 2 (memory)" in decision.reason
    assert decision.wanted > 2


def test_settings_can_be_others() -> None:
    world = World(Bounds(1, 8), policy=Autoscaler(Settings(turn_s=0.0, down_window_s=10.0)))
    for _ in range(3):
        for arrivals in itertools.chain([20] * 40, [1] * 200):
            world.step(arrivals)
    assert len(count_turns(world.counts)) >= 4
