"""What a worker counts of a version, and what it leaves out."""

from __future__ import annotations

import itertools
import math

import pytest

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
    demand = Demand()
    demand.begin()
    demand.begin()
    seen = demand.read({}, 0, 0)
    assert seen.in_flight == 2
    demand.end()
    demand.end()
    seen = demand.read({"m-0": 3.0}, 1, 2)
    assert (seen.in_flight, seen.held, seen.queued, seen.work) == (0, 1, 2, {"m-0": 3.0})
    assert 0.0 < seen.busy_s <= 2 * seen.counted_s
    before_s = seen.busy_s
    assert demand.read({}, 0, 0).busy_s == before_s


def test_buckets_follow_one_another() -> None:
    limits = [bucket_limit_s(bucket) for bucket in range(BUCKETS)]
    assert all(later > earlier for earlier, later in itertools.pairwise(limits))
    for bucket, limit_s in enumerate(limits[:-1]):
        assert find_bucket(limit_s * 0.999) == bucket
        assert find_bucket(limit_s * 1.001) == bucket + 1
    assert find_bucket(0.0) == 0
    assert find_bucket(math.inf) == BUCKETS - 1
