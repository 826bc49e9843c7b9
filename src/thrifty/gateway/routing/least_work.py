"""Least work: the replica that will be through with what it has the soonest.

Work is the time that outstanding prompt tokens (those that no cache holds) and expected answers will
take, at the speeds that were measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from thrifty.gateway.state.policy import AnyCandidate, Knowledge
from thrifty.gateway.state.routed_request import RoutedRequest

SCAN = 64
"""Up to so many candidates are all looked at; of more, a sample. The best of 16 out of a thousand is
among the best tenth of them four times in five (1 - 0.9 ** 16), and looking costs the same at any
number."""
SAMPLE = 16


class LeastWork:
    """Ties are broken at random."""

    wants_prefix = True
    wants_affinity = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, known: Knowledge
    ) -> AnyCandidate:
        """One of the least loaded."""
        return find_least_work(sample(candidates, self._rng), known, self._rng)


def sample(candidates: Sequence[AnyCandidate], rng: random.Random) -> Sequence[AnyCandidate]:
    """All candidates where they are few, otherwise some of them."""
    return candidates if len(candidates) <= SCAN else rng.sample(candidates, SAMPLE)


def find_least_work(
    candidates: Sequence[AnyCandidate], known: Knowledge, rng: random.Random
) -> AnyCandidate:
    """The candidate with the least outstanding work; one of them where several have it."""
    least, best = float("inf"), []
    key: object = None
    rates = known.rates_of(candidates[0])
    for candidate in candidates:
        if candidate.rates_key is not key:
            key = candidate.rates_key
            rates = known.rates_of(candidate)
        work_s = (
            rates.prefill_s * candidate.prefill_tokens
            + rates.decode_s * candidate.decode_tokens
            # What nothing is known of yet counts too: many short requests are work.
            + 1e-6 * candidate.in_flight
        )
        if work_s < least:
            least, best = work_s, [candidate]
        elif work_s == least:
            best.append(candidate)
    return best[0] if len(best) == 1 else rng.choice(best)
