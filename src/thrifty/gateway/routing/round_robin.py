"""Round robin: every replica in its turn."""

from __future__ import annotations

import random
from collections.abc import Sequence

from thrifty.gateway.state.policy import AnyCandidate, Knowledge
from thrifty.gateway.state.routed_request import RoutedRequest


class RoundRobin:
    """Goes round by name, so that replicas which come and go do not upset the order. Begins
    anywhere, so that several gateways do not move in step.
    """

    wants_prefix = False
    wants_affinity = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._last: str | None = None

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, known: Knowledge
    ) -> AnyCandidate:
        """The one after the last."""
        ordered = sorted(candidates, key=lambda candidate: candidate.id)
        if self._last is None:
            chosen = self._rng.choice(ordered)
        else:
            chosen = next((c for c in ordered if c.id > self._last), ordered[0])
        self._last = chosen.id
        return chosen
