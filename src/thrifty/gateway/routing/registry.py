"""The policies by the names that specs use."""

from __future__ import annotations

import random
from collections.abc import Callable

from thrifty.gateway.routing.base import RoutingPolicy
from thrifty.gateway.routing.round_robin import RoundRobin
from thrifty.gateway.routing.shortest_queue import ShortestQueue

POLICIES: dict[str, Callable[[random.Random], RoutingPolicy]] = {
    "auto": ShortestQueue,
    "shortest_queue": ShortestQueue,
    "round_robin": RoundRobin,
}


def make_policy(name: str, rng: random.Random | None = None) -> RoutingPolicy:
    """The policy called `name`."""
    return POLICIES[name](rng or random.Random())
