"""What a worker counts of a version, and what it leaves out."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.db.demand import BUCKETS, bucket_limit_s, find_bucket
from thrifty.gateway.state.demand import WARM_UP_ANSWERS, Demand
from thrifty.gateway.state.replica import Replica
from thrifty.http.origin import parse_origin


def replica(name: str = "m-0") -> Replica:
    return Replica(name, "m", "a", "r", parse_origin("http://127.0.0.1:1"), "ready")


def answer(demand: Demand, by: Replica, *, streamed: bool = True, slow: float = 1.0) -> None:
    demand.note_answer(
        by, received_s=10.0, sent_s=11.0, first_s=11.0 + 0.2 * slow, last_s=11.0 + 1.2 * slow,
        prompt_tokens=7, output_tokens=11, streamed=streamed,
    )  # fmt: skip


def test_the_first_answers_of_each_replica_stay_out_of_the_sums() -> None:
    demand, first = Demand(), replica()
    for _ in range(WARM_UP_ANSWERS):
        answer(demand, first, slow=50.0)
    assert demand.figures.answered == 0
    assert sum(demand.figures.ttft_buckets) == WARM_UP_ANSWERS
    for _ in range(4):
        answer(demand, first)
    second = replica("m-1")
    answer(demand, second, slow=50.0)
    figures = demand.figures
    assert (figures.answered, figures.streamed, figures.timed) == (4, 4, 4)
    assert figures.held_s == pytest.approx(4 * 1.2)
    assert figures.begin_s == pytest.approx(4 * 0.2)
    assert figures.token_s == pytest.approx(4 * 0.1)
    assert (figures.prompt_tokens, figures.output_tokens) == (28, 44)


def test_an_answer_in_one_piece_shows_no_first_token() -> None:
    demand, first = Demand(), replica()
    for _ in range(WARM_UP_ANSWERS + 3):
        answer(demand, first, streamed=False)
    assert (demand.figures.answered, demand.figures.streamed, demand.figures.timed) == (3, 0, 0)


def test_busy_time_is_that_of_all_requests_together() -> None:
    now_s = 100.0
    demand = Demand(lambda: now_s)
    demand.begin(100.0)
    demand.begin(102.0)
    now_s = 103.0
    seen = demand.read({}, 0, 0)
    assert (seen.in_flight, seen.busy_s, seen.counted_s) == (2, 4.0, 3.0)
    demand.end(100.0, 105.0)
    demand.end(102.0, 106.0)
    now_s = 110.0
    seen = demand.read({"m-0": 3.0}, 1, 2)
    assert (seen.in_flight, seen.held, seen.queued, seen.work) == (0, 1, 2, {"m-0": 3.0})
    assert (seen.busy_s, seen.counted_s) == (9.0, 10.0)


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=40), st.floats(0, 120))
def test_busy_time_never_falls_and_needs_no_reading_in_between(
    spans: list[tuple[float, float]], look_s: float
) -> None:
    now_s = 0.0
    demand, looked = Demand(lambda: now_s), 0.0
    events = [(begin, 0, 0.0) for begin, _ in spans]
    events += [(begin + length, 1, begin) for begin, length in spans]
    for at_s, ends, began_s in sorted([*events, (look_s, 2, 0.0)]):
        now_s = at_s
        if ends == 2:
            looked = demand.read({}, 0, 0).busy_s
        elif ends:
            demand.end(began_s, at_s)
        else:
            demand.begin(at_s)
    seen = demand.read({}, 0, 0).busy_s
    assert seen == pytest.approx(sum(length for _, length in spans))
    expected = sum(min(max(0.0, look_s - begin), length) for begin, length in spans)
    assert looked == pytest.approx(expected, abs=1e-6)


def test_buckets_follow_one_another() -> None:
    limits = [bucket_limit_s(bucket) for bucket in range(BUCKETS)]
    assert all(later > earlier for earlier, later in itertools.pairwise(limits))
    for bucket, limit_s in enumerate(limits[:-1]):
        assert find_bucket(limit_s * 0.999) == bucket
        assert find_bucket(limit_s * 1.001) == bucket + 1
    assert find_bucket(0.0) == 0
    assert find_bucket(math.inf) == BUCKETS - 1
