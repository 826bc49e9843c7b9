"""Routing policies are plain code over plain state; so are their tests."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import get_args

import pytest

from thrifty.gateway.routing import POLICIES, make_policy
from thrifty.spec.models import Routing


@dataclass
class Copy:
    id: str
    in_flight: int = 0


def copies(count: int) -> list[Copy]:
    return [Copy(f"r-{index}") for index in range(count)]


def test_every_policy_of_the_spec_exists_and_no_other() -> None:
    assert set(get_args(Routing)) == set(POLICIES)
    assert len(POLICIES) >= 3


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_chooses_the_only_candidate(name: str) -> None:
    (only,) = copies(1)
    assert make_policy(name).choose([only]) is only


def test_shortest_queue_takes_the_least_loaded() -> None:
    fleet = copies(5)
    for copy, load in zip(fleet, (3, 1, 2, 1, 5), strict=True):
        copy.in_flight = load
    policy = make_policy("shortest_queue", random.Random(1))
    chosen = {policy.choose(fleet).id for _ in range(100)}
    assert chosen == {"r-1", "r-3"}


def test_shortest_queue_breaks_ties_at_random_so_that_idle_replicas_share() -> None:
    fleet = copies(8)
    policy = make_policy("shortest_queue", random.Random(7))
    counts = Counter(policy.choose(fleet).id for _ in range(8000))
    assert min(counts.values()) > 850
    assert max(counts.values()) < 1150


def test_two_gateways_do_not_choose_in_step() -> None:
    fleet = copies(4)
    one, two = make_policy("auto"), make_policy("auto")
    same = sum(one.choose(fleet).id == two.choose(fleet).id for _ in range(2000))
    assert 350 < same < 650


def test_round_robin_takes_each_in_its_turn() -> None:
    fleet = copies(4)
    policy = make_policy("round_robin", random.Random(3))
    row = [policy.choose(fleet).id for _ in range(8)]
    assert row[:4] == row[4:]
    assert len(set(row[:4])) == 4


def test_round_robin_goes_on_when_replicas_come_and_go() -> None:
    fleet = copies(3)
    policy = make_policy("round_robin", random.Random(3))
    for _ in range(5):
        policy.choose(fleet)
    without_one = [fleet[0], fleet[2]]
    counts = Counter(policy.choose(without_one).id for _ in range(100))
    assert counts == {"r-0": 50, "r-2": 50}


def test_load_of_a_thousand_replicas_stays_even_under_shortest_queue() -> None:
    fleet = copies(1000)
    policy = make_policy("shortest_queue", random.Random(5))
    for _ in range(10_000):
        policy.choose(fleet).in_flight += 1
    assert {copy.in_flight for copy in fleet} == {10}
