"""Join the shortest queue: the replica with the fewest requests in flight."""

from __future__ import annotations

import random
from collections.abc import Sequence

from thrifty.gateway.state.policy import AnyCandidate, LearnedState
from thrifty.gateway.state.routed_request import RoutedRequest


class ShortestQueue:
    """Ties are broken at random, so that equal replicas share the load and several gateways do not
    all choose the same one.
    """

    wants_prefix = False
    wants_affinity = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, learned: LearnedState
    ) -> AnyCandidate:
        """One of the candidates with the fewest requests in flight."""
        least = min(candidate.in_flight for candidate in candidates)
        shortest = [candidate for candidate in candidates if candidate.in_flight == least]
        return shortest[0] if len(shortest) == 1 else self._rng.choice(shortest)
