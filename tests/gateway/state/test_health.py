"""Ejection of replicas: plain code over plain state, with the time passed in."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from thrifty.gateway.state import health as module
from thrifty.gateway.state.health import AVOID_S, EJECT_S, MAX_EJECT_S, Health


@dataclass
class Copy:
    id: str


def copies(count: int) -> list[Copy]:
    return [Copy(f"r-{index}") for index in range(count)]


def ids(fleet: list[Copy]) -> set[str]:
    return {copy.id for copy in fleet}


def eject(health: Health, fleet: list[Copy], name: str, now_s: float) -> None:
    for _ in range(module.CONSECUTIVE):
        ejected = health.note_failure(name, ids(fleet), now_s)
    assert ejected


def test_all_healthy_replicas_are_candidates() -> None:
    health, fleet = Health(), copies(3)
    for copy in fleet:
        health.note_success(copy.id, 1.0)
    assert health.all_healthy
    assert health.choose_from(fleet, 1.0) is fleet


def test_a_replica_that_just_failed_is_avoided_for_a_moment() -> None:
    health, fleet = Health(), copies(3)
    assert not health.note_failure("r-1", ids(fleet), 10.0)
    assert [c.id for c in health.choose_from(fleet, 10.5)] == ["r-0", "r-2"]
    assert len(health.choose_from(fleet, 10.0 + AVOID_S)) == 3
    assert health.all_healthy
    assert list(health.choose_from([fleet[1]], 10.1)) == [fleet[1]]


def test_three_failures_eject_and_one_trial_restores() -> None:
    health, fleet = Health(), copies(4)
    eject(health, fleet, "r-1", 10.0)
    assert health.is_ejected("r-1")
    assert ids(list(health.choose_from(fleet, 12.0))) == {"r-0", "r-2", "r-3"}
    # The ejection is over: one trial request is sent; the others go elsewhere meanwhile.
    after_s = 10.0 + EJECT_S
    assert list(health.choose_from(fleet, after_s)) == [fleet[1]]
    health.note_sent("r-1", after_s)
    assert len(health.choose_from(fleet, after_s)) == 3
    assert health.note_success("r-1", after_s + 1)
    assert health.all_healthy
    assert len(health.choose_from(fleet, after_s + 1)) == 4


def test_a_trial_that_fails_ejects_for_twice_as_long_up_to_a_bound() -> None:
    health, fleet, now_s = Health(), copies(4), 0.0
    eject(health, fleet, "r-0", now_s)
    lasts_s = EJECT_S
    for _ in range(10):
        assert fleet[0] not in health.choose_from(fleet, now_s + lasts_s - 0.01)
        now_s += lasts_s
        assert list(health.choose_from(fleet, now_s)) == [fleet[0]]
        health.note_sent("r-0", now_s)
        assert health.note_failure("r-0", ids(fleet), now_s)
        lasts_s = min(MAX_EJECT_S, 2 * lasts_s)
    assert lasts_s == MAX_EJECT_S


def test_a_trial_whose_client_left_is_tried_again() -> None:
    health, fleet = Health(), copies(2)
    eject(health, fleet, "r-0", 0.0)
    health.note_sent("r-0", EJECT_S)
    assert list(health.choose_from(fleet, EJECT_S)) == [fleet[1]]
    health.note_unknown("r-0")
    assert list(health.choose_from(fleet, EJECT_S)) == [fleet[0]]


def test_answers_to_earlier_requests_do_not_end_an_ejection() -> None:
    health, fleet = Health(), copies(2)
    eject(health, fleet, "r-0", 0.0)
    assert not health.note_success("r-0", 1.0)
    assert health.is_ejected("r-0")


def test_an_outlier_is_ejected() -> None:
    health, fleet, now_s = Health(), copies(4), 0.0
    rng = random.Random(1)
    ejected: set[str] = set()
    for _ in range(200):
        now_s += 0.05
        for copy in fleet:
            fails = rng.random() < (0.5 if copy.id == "r-2" else 0.02)
            if not fails:
                health.note_success(copy.id, now_s)
            elif health.note_failure(copy.id, ids(fleet), now_s):
                ejected.add(copy.id)
    assert ejected == {"r-2"}


def test_at_least_half_stays_when_all_fail() -> None:
    health, fleet, now_s = Health(), copies(8), 0.0
    for _ in range(30):
        now_s += 0.1
        for copy in fleet:
            health.note_failure(copy.id, ids(fleet), now_s)
    assert health.count_ejected(ids(fleet)) == 4
    assert len(health.choose_from(fleet, now_s + AVOID_S)) >= 4


def test_a_single_replica_is_never_ejected() -> None:
    health, fleet = Health(), copies(1)
    for _ in range(20):
        assert not health.note_failure("r-0", ids(fleet), 1.0)
    assert list(health.choose_from(fleet, 1.0)) == fleet


def test_the_ejection_time_starts_over_after_a_while() -> None:
    health, fleet = Health(), copies(4)
    eject(health, fleet, "r-0", 0.0)
    health.note_sent("r-0", 5.0)
    health.note_success("r-0", 5.0)
    eject(health, fleet, "r-0", 1000.0)
    # Its second ejection, long after the first, is as short as the first.
    assert list(health.choose_from(fleet, 1000.0 + EJECT_S)) == [fleet[0]]


def test_records_of_removed_replicas_are_dropped() -> None:
    health, fleet = Health(), copies(4)
    eject(health, fleet, "r-0", 0.0)
    health.keep_only({"r-1"})
    assert health.all_healthy
    eject(health, fleet, "r-1", 0.0)
    health.forget("r-1")
    assert health.all_healthy


@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["ok", "fail", "sent", "unknown", "pass"])),
             max_size=300),
)  # fmt: skip
def test_there_is_always_a_candidate_and_half_stays(
    count: int, steps: list[tuple[int, str]]
) -> None:
    health, fleet, now_s = Health(), copies(count), 0.0
    names = ids(fleet)
    for index, what in steps:
        name = f"r-{index % count}"
        now_s += 0.2 if what != "pass" else 4.0
        if what == "ok":
            health.note_success(name, now_s)
        elif what == "fail":
            health.note_failure(name, names, now_s)
        elif what == "sent":
            health.note_sent(name, now_s)
        elif what == "unknown":
            health.note_unknown(name)
        chosen = health.choose_from(fleet, now_s)
        assert chosen
        assert ids(list(chosen)) <= names
        assert health.count_ejected(names) <= count / 2
        if health.all_healthy:
            assert len(chosen) == count
