"""Others' rules behave as their documents say, and every policy keeps to its bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulate.test_world import ENGINE, make_requests
from thrifty.db.demand import Figures
from thrifty.simulate.ours import Autoscaled
from thrifty.simulate.rivals import Capacity, Dynamo, Hpa, Kpa, SkyServe
from thrifty.simulate.scaler import Bounds, Objective, ReplicaLoad, Scaler, ScalingCase, Seen
from thrifty.simulate.trace import TraceRequest
from thrifty.simulate.world import Setup, simulate

CAPACITY = Capacity(requests_per_s=2.0, concurrency=10.0)
OBJECTIVE = Objective(0.5, 0.05)
MAKERS: dict[str, Callable[[Bounds], Scaler]] = {
    "autoscale": lambda bounds: Autoscaled(ScalingCase(ENGINE, OBJECTIVE, bounds), 60.0),
    "hpa": lambda _: Hpa(CAPACITY),
    "kpa": lambda _: Kpa(CAPACITY),
    "skyserve": lambda _: SkyServe(CAPACITY),
    "dynamo": lambda _: Dynamo(CAPACITY, OBJECTIVE),
}


class Fleet:
    """A fleet that follows a policy at once, under a load that a test sets."""

    def __init__(self, scaler: Scaler, count: int) -> None:
        self.scaler, self.count, self.now_s = scaler, count, 0.0

    def run(self, seconds: float, *, concurrency: float = 0.0, rate: float = 0.0) -> list[int]:
        """The counts, one for each decision."""
        counts = []
        step_s = self.scaler.interval_s
        for _ in range(round(seconds / step_s)):
            self.now_s += step_s
            each = concurrency / max(1, self.count)
            ttft_s, tpot_s = 0.05 + 0.05 * each, 0.01 + 0.002 * each
            self.count = self.scaler.decide(
                Seen(
                    self.now_s, step_s, self.count, 0, 0, round(concurrency), 0, concurrency,
                    round(rate * step_s), 100, round(rate * step_s), 100, (ttft_s,), (tpot_s,),
                    (ReplicaLoad(round(each), 100 * each),) * self.count, (), Figures,
                )
            )  # fmt: skip
            counts.append(self.count)
        return counts


def test_hpa_rises_at_once_and_falls_after_five_minutes() -> None:
    fleet = Fleet(Hpa(CAPACITY), 1)
    # 40 requests at 80% of 10 each are 5 pods; from one, 15 s allow 4 more.
    assert fleet.run(30, concurrency=40) == [5, 5]
    # Within the tolerance of 10% nothing changes.
    assert fleet.run(600, concurrency=43) == [5] * 40
    counts = fleet.run(345, concurrency=8)
    # The recommendation of five minutes ago still holds when exactly that old.
    assert counts[:20] == [5] * 20
    assert counts[21:] == [1] * 2


def test_hpa_at_most_doubles_or_adds_four() -> None:
    fleet = Fleet(Hpa(CAPACITY), 1)
    assert fleet.run(60, concurrency=400) == [5, 10, 20, 40]


def test_kpa_panics_on_a_burst_and_does_not_fall_in_panic() -> None:
    fleet = Fleet(Kpa(CAPACITY), 2)
    assert set(fleet.run(120, concurrency=14)) == {2}
    # 70 requests need 10 pods at 7 each. Six seconds of them are seen at once, sixty are not.
    counts = fleet.run(8, concurrency=70)
    assert counts[-1] == 10
    assert min(fleet.run(50, concurrency=7)) == 10
    counts = fleet.run(80, concurrency=7)
    assert counts[-1] == 1
    # At most by half at once.
    assert all(later >= earlier // 2 for earlier, later in itertools.pairwise(counts))


def test_kpa_goes_to_zero_after_a_window_and_a_grace() -> None:
    fleet = Fleet(Kpa(CAPACITY), 1)
    fleet.run(60, concurrency=5)
    counts = fleet.run(120)
    # 60 s until the window is empty, then 30 s of grace.
    zero = counts.index(0) * 2
    assert 86 <= zero <= 94


def test_skyserve_waits_five_minutes_up_and_twenty_down() -> None:
    fleet = Fleet(SkyServe(CAPACITY), 1)
    counts = fleet.run(400, rate=8)
    assert 300 <= (counts.index(4) + 1) * 20 <= 360
    counts = fleet.run(1400, rate=2)
    assert 1200 <= (counts.index(1) + 1) * 20 <= 1260


def test_dynamos_throughput_rule_sets_a_floor_every_three_minutes() -> None:
    fleet = Fleet(Dynamo(CAPACITY, Objective()), 1)
    assert fleet.run(175, rate=7) == [1] * 35
    assert fleet.run(5, rate=7) == [4]


def test_dynamos_load_rule_moves_by_one() -> None:
    fleet = Fleet(Dynamo(CAPACITY, OBJECTIVE), 1)
    for concurrency in (2, 4, 6, 8, 10):
        fleet.run(5, concurrency=concurrency)
    before = fleet.count
    counts = fleet.run(15, concurrency=60)
    assert counts == [before + 1, before + 2, before + 3]


@pytest.mark.parametrize("name", sorted(MAKERS))
@settings(max_examples=8, deadline=None)
@given(
    low=st.integers(0, 3),
    more=st.integers(1, 6),
    rate=st.sampled_from([1.0, 10.0, 60.0]),
    seed=st.integers(0, 99),
)
def test_no_policy_leaves_its_bounds_or_loses_a_request(
    name: str, low: int, more: int, rate: float, seed: int
) -> None:
    bounds = Bounds(low, low + more)

    def requests() -> Iterator[TraceRequest]:
        yield from make_requests(150, rate, seed)
        for request in make_requests(50, rate, seed + 1):
            yield request._replace(at_s=request.at_s + 150 / rate + 400.0)

    # Long enough for the slowest rule to start something.
    setup = Setup(ENGINE, OBJECTIVE, bounds, waiting=1000, wait_timeout_s=2000.0)
    found = simulate(requests(), setup, MAKERS[name](bounds), name)
    assert found.answered == 200
    assert found.max_replicas <= bounds.high
    assert all(moment.replicas <= bounds.high + 1e-9 for moment in found.timeline)
    assert found.min_replicas >= bounds.low


def test_ours_starts_for_a_request_at_zero_and_stops_when_idle() -> None:
    bounds = Bounds(0, 4)
    setup = Setup(ENGINE, OBJECTIVE, bounds, first=0)
    requests = [TraceRequest(at, 50, 5) for at in (0.0, 300.0)]
    found = simulate(iter(requests), setup, MAKERS["autoscale"](bounds), "autoscale")
    assert found.answered == 2
    assert found.min_replicas == 0
    # Started at once, ready after 5 s, known to the gateway within 0.2 s; both times.
    assert found.ttft_p99_s == pytest.approx(5.2, abs=0.3)
    assert found.replica_hours * 3600 == pytest.approx(2 * 5.2 + 60, abs=5)
