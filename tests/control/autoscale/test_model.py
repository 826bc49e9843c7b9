"""The queueing model against exact formulas, and the fits against lines that are known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.control.autoscale.fit import Histogram, Line, LineFit, Speed
from thrifty.control.autoscale.model import Fleet, chance_of_waiting
from thrifty.db.demand import BUCKETS, find_bucket


def erlang_c(servers: int, utilisation: float) -> float:
    """The chance of waiting in M/M/n, by the recursion of Erlang's B formula."""
    load, blocked = servers * utilisation, 1.0
    for server in range(1, servers + 1):
        blocked = load * blocked / (server + load * blocked)
    return blocked / (1.0 - utilisation * (1.0 - blocked))


@pytest.mark.parametrize("servers", [4, 16, 64, 256, 2048])
@pytest.mark.parametrize("utilisation", [0.5, 0.7, 0.85, 0.95, 0.99])
def test_the_chance_of_waiting_is_erlangs(servers: int, utilisation: float) -> None:
    """Halfin and Whitt's limit is exact for many servers, and off by few percent for four."""
    found, exact = chance_of_waiting(servers, utilisation), erlang_c(servers, utilisation)
    assert found == pytest.approx(exact, abs=0.06)


FLEETS = st.builds(
    lambda base, slope, slots: Fleet(
        Speed(Line(base, slope), Line(base / 10, slope / 10), Line(base / 50, slope / 50)),
        slots,
        32,
    ),
    st.floats(0.01, 20.0),
    st.floats(0.0, 5.0),
    st.one_of(st.none(), st.integers(1, 64)),
)


@settings(max_examples=60, deadline=None)
@given(FLEETS, st.integers(1, 300), st.floats(0.0, 500.0))
def test_more_replicas_are_never_worse(fleet: Fleet, replicas: int, rate: float) -> None:
    few, more = fleet.predict(replicas, rate), fleet.predict(replicas + 1, rate)
    assert more.utilisation <= few.utilisation
    assert more.concurrency <= few.concurrency + 1e-9
    for name in ("ttft_p95_s", "tpot_p95_s"):
        assert getattr(more, name) <= getattr(few, name) + 1e-9
    best = fleet.best()
    assert best.ttft_p95_s is not None
    assert few.ttft_p95_s is not None
    assert best.ttft_p95_s <= few.ttft_p95_s + 1e-9


def test_the_load_of_a_replica_obeys_littles_law() -> None:
    fleet = Fleet(Speed(Line(2.0, 0.5)), None, 32)
    found = fleet.predict(4, 3.0)
    assert found.concurrency == pytest.approx(3.0 / 4 * (2.0 + 0.5 * found.concurrency))


def test_a_line_is_found_whatever_the_prior_says() -> None:
    fit, chance = LineFit(), random.Random(1)
    for _ in range(200):
        load = chance.uniform(0.0, 8.0)
        fit.add(load, 0.1 + 0.02 * load, 5.0, 0.99)
    line = fit.solve(0.25, 4.0)
    assert line is not None
    assert (line.base_s, line.slope_s) == (pytest.approx(0.1, abs=0.002), pytest.approx(0.02, 0.02))


def test_one_load_alone_leaves_the_slope_to_the_prior() -> None:
    fit = LineFit()
    for _ in range(50):
        fit.add(2.0, 0.3, 5.0, 0.99)
    line = fit.solve(0.25, 4.0)
    assert line is not None
    assert line.slope_s == pytest.approx(0.25 * line.base_s)
    assert line.at(2.0) == pytest.approx(0.3)


@given(st.lists(st.floats(0.002, 50.0), min_size=40, max_size=300))
@settings(max_examples=40, deadline=None)
def test_a_quantile_is_within_a_bucket(times: list[float]) -> None:
    counts = [0.0] * BUCKETS
    for seconds in times:
        counts[find_bucket(seconds)] += 1
    histogram = Histogram()
    histogram.add(tuple(counts), 1.0)
    exact = sorted(times)[math.ceil(0.95 * len(times)) - 1]
    found = histogram.quantile_s()
    assert found is not None
    assert exact / 1.5 <= found <= exact * 1.5
