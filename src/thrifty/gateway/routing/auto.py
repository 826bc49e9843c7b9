"""The default policy: prefer the replica with the longest cached prefix, bounded by load.

For each candidate the time to the first token is estimated from its outstanding work and from the
prompt tokens that its cache saves. A replica with a longer cached prefix may be slower than the
fastest one by as much time as the cache saves: recomputing the prefix elsewhere would cost that
time on another replica and evict other prefixes there. Beyond that, and if nothing is cached, the
request goes to the replica with the least work.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from thrifty.gateway.routing.least_work import find_least_work, sample
from thrifty.gateway.state.policy import AnyCandidate, Candidate, LearnedState
from thrifty.gateway.state.rates import WorkAhead
from thrifty.gateway.state.routed_request import RoutedRequest

HOLDERS = 8
"""At most this many replicas with the longest match are compared."""
MARGIN = 0.25
"""Tolerance for estimation errors: a holder may be slower by this fraction beyond the saved
time."""


class Auto:
    """Prefix-aware routing, bounded by load."""

    wants_prefix = True
    wants_affinity = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, learned: LearnedState
    ) -> AnyCandidate:
        """Choose by the rule in the module's docstring."""
        least = find_least_work(sample(candidates, self._rng), learned, self._rng)
        if not request.levels:
            return least
        holder = self._find_holder(candidates, request, learned)
        if holder is None or holder is least:
            return least
        saved, cached = request.cached_tokens(holder.slot), request.cached_tokens(least.slot)
        there, elsewhere = learned.rates_of(holder), learned.rates_of(least)
        at_holder_s = there.estimate_ttft_s(_estimate_ahead(holder, request, saved))
        at_least_s = elsewhere.estimate_ttft_s(_estimate_ahead(least, request, cached))
        saved_s = elsewhere.prefill_s * max(0.0, saved - cached)
        return holder if at_holder_s <= at_least_s * (1 + MARGIN) + saved_s else least

    def _find_holder(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, learned: LearnedState
    ) -> AnyCandidate | None:
        """The least loaded of the candidates with the longest match, or of some of them."""
        by_slot = learned.by_slot(candidates)
        for _, mask in request.levels:
            holders = []
            for slot in _spread_bits(mask, self._rng):
                candidate = by_slot.get(slot)
                if candidate is not None:
                    holders.append(candidate)
                    if len(holders) == HOLDERS:
                        break
            if holders:
                return find_least_work(holders, learned, self._rng)
        return None


def _estimate_ahead(candidate: Candidate, request: RoutedRequest, cached: float) -> WorkAhead:
    """The work ahead of the request there, with `cached` of its tokens in the replica's cache."""
    tokens = candidate.prefill_tokens + request.prompt_tokens - cached
    return WorkAhead(tokens, candidate.in_flight, candidate.waiting)


def _spread_bits(mask: int, rng: random.Random) -> Iterator[int]:
    """The positions of the bits in `mask`, from a random start, so that holders share the load."""
    length = mask.bit_length()
    start = rng.randrange(length) if length > HOLDERS else 0
    upper = mask >> start
    for part, offset in ((upper, start), (mask & ((1 << start) - 1), 0)):
        while part:
            low = part & -part
            yield offset + low.bit_length() - 1
            part ^= low
