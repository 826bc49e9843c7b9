"""The rate of arrivals: bursts are told from the way in which requests usually come."""

from __future__ import annotations

import random

from thrifty.control.autoscale.arrivals import Arrivals
from thrifty.control.autoscale.settings import Settings


def count_bursts(clump: int, seconds: int, rate: float = 4.0, seed: int = 1) -> int:
    """How often a burst is seen in steady traffic of so many requests together."""
    rng = random.Random(seed)
    arrivals = Arrivals(Settings())
    due_s, bursts = 0.0, 0
    for second in range(1, seconds + 1):
        arrived = 0
        while due_s < second:
            arrived += clump
            due_s += rng.expovariate(rate / clump)
        arrivals.add(float(second), 1.0, arrived)
        # Twice the level can only be a burst; a steady rate has no such trend.
        bursts += second > 120 and arrivals.estimate(0.0) > 1.8 * rate
    return bursts


def test_requests_that_come_together_are_no_burst() -> None:
    assert count_bursts(1, 1800) <= 2
    # By chance, in less than one second of a hundred.
    assert sum(count_bursts(6, 1800, seed=seed) for seed in range(4)) <= 72


def test_a_real_burst_is_seen_within_seconds_in_clumped_traffic_too() -> None:
    rng = random.Random(2)
    arrivals = Arrivals(Settings())
    for second in range(1, 600):
        arrivals.add(float(second), 1.0, 6 * (rng.random() < 0.6))
    level = arrivals.estimate(0.0)
    for second in range(600, 604):
        arrivals.add(float(second), 1.0, 30)
    assert arrivals.estimate(0.0) >= 25
    assert level < 10


def test_a_burst_does_not_become_usual() -> None:
    """What one burst was like does not hide the next one."""
    arrivals = Arrivals(Settings())
    rng = random.Random(3)
    now_s = 0.0
    for rate in (5, 40, 5, 40):
        for _ in range(300 if rate == 5 else 12):
            now_s += 1.0
            arrivals.add(now_s, 1.0, sum(rng.random() < rate / 100 for _ in range(100)))
        if rate == 40:
            assert arrivals.estimate(0.0) >= 30
