"""Round robin: each replica in turn."""

from __future__ import annotations

import random
from collections.abc import Sequence

from thrifty.gateway.state.policy import AnyCandidate, LearnedState
from thrifty.gateway.state.routed_request import RoutedRequest


class RoundRobin:
    """Goes through replicas by id, so that replicas that come and go do not change the order. The
    start is random, so that several gateways do not move in step.
    """

    wants_prefix = False
    wants_affinity = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._last: str | None = None

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, learned: LearnedState
    ) -> AnyCandidate:
        """The candidate after the last one chosen."""
        ordered = sorted(candidates, key=lambda candidate: candidate.id)
        if self._last is None:
            chosen = self._rng.choice(ordered)
        else:
            chosen = next((c for c in ordered if c.id > self._last), ordered[0])
        self._last = chosen.id
        return chosen
