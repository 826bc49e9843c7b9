"""Power of two choices: of two random replicas, the one with less work."""

from __future__ import annotations

import random
from collections.abc import Sequence

from thrifty.gateway.routing.least_work import find_least_work
from thrifty.gateway.state.policy import AnyCandidate, LearnedState
from thrifty.gateway.state.routed_request import RoutedRequest


class PowerOfTwo:
    """Nearly as even as comparing all replicas, and gateways that know little of each other do not
    all choose the same one.
    """

    wants_prefix = True
    wants_affinity = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, learned: LearnedState
    ) -> AnyCandidate:
        """The better of two random candidates."""
        return find_least_work(self._rng.sample(candidates, 2), learned, self._rng)
