"""Routing policies by the names that specs use."""

from __future__ import annotations

import random
from collections.abc import Callable

from thrifty.gateway.routing.auto import Auto
from thrifty.gateway.routing.bounded_hash import BoundedHash
from thrifty.gateway.routing.least_work import LeastWork
from thrifty.gateway.routing.power_of_two import PowerOfTwo
from thrifty.gateway.routing.round_robin import RoundRobin
from thrifty.gateway.routing.shortest_queue import ShortestQueue
from thrifty.gateway.state.policy import RoutingPolicy

POLICIES: dict[str, Callable[[random.Random], RoutingPolicy]] = {
    "auto": Auto,
    "least_work": LeastWork,
    "shortest_queue": ShortestQueue,
    "power_of_two": PowerOfTwo,
    "bounded_hash": BoundedHash,
    "round_robin": RoundRobin,
}


def make_policy(name: str, rng: random.Random | None = None) -> RoutingPolicy:
    """The policy called `name`."""
    return POLICIES[name](rng or random.Random())
