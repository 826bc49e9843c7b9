"""Consistent hashing with bounded loads: a session, or a prompt beginning, keeps its replica as
long as that replica's load is at most 1.25 times the mean.

The positions of replicas on the ring follow from their ids, so all gateways agree, and few sessions
move when a replica is added or removed (Mirrokni, Thorup and Zadimoghaddam, 2018).
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from thrifty.gateway.state.policy import AnyCandidate, LearnedState
from thrifty.gateway.state.routed_request import RoutedRequest

POINTS = 64
"""Positions of each replica on the ring."""
BOUND = 1.25


class BoundedHash:
    """Consistent hashing with bounded loads. The ring is rebuilt when the candidates change."""

    wants_prefix = False
    wants_affinity = True

    def __init__(self, rng: random.Random) -> None:
        self._ids: tuple[str, ...] = ()
        self._points: list[int] = []
        self._owners: list[str] = []

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, learned: LearnedState
    ) -> AnyCandidate:
        """The first replica after the request's position that is not over its bound."""
        by_id = {candidate.id: candidate for candidate in candidates}
        ids = tuple(by_id)
        if ids != self._ids:
            self._build(ids)
        total = sum(candidate.in_flight for candidate in candidates)
        bound = math.ceil(BOUND * (total + 1) / len(candidates))
        start = bisect_right(self._points, request.affinity)
        seen: set[str] = set()
        for step in range(len(self._owners)):
            owner = self._owners[(start + step) % len(self._owners)]
            if owner in seen:
                continue
            if by_id[owner].in_flight < bound:
                return by_id[owner]
            seen.add(owner)
        return min(candidates, key=lambda candidate: candidate.in_flight)

    def _build(self, ids: tuple[str, ...]) -> None:
        ring: list[tuple[int, Any]] = []
        for name in ids:
            for number in range(POINTS):
                digest = hashlib.blake2b(f"{name}\0{number}".encode(), digest_size=8).digest()
                ring.append((int.from_bytes(digest), name))
        ring.sort()
        self._ids = ids
        self._points = [point for point, _ in ring]
        self._owners = [name for _, name in ring]
