"""Least work: the replica that will finish its outstanding work first.

Work is the time for outstanding prompt tokens (without cached ones) and expected answers, at the
measured speeds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from thrifty.gateway.state.policy import AnyCandidate, LearnedState
from thrifty.gateway.state.routed_request import RoutedRequest

SCAN = 64
"""Up to this many candidates are all compared; of more, a sample. The best of 16 out of a thousand
is among the best tenth four times in five (1 - 0.9 ** 16), and the cost does not grow with their
number."""
SAMPLE = 16


class LeastWork:
    """Chooses the least loaded replica; ties are broken at random."""

    wants_prefix = True
    wants_affinity = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, learned: LearnedState
    ) -> AnyCandidate:
        """One of the least loaded candidates."""
        return find_least_work(sample(candidates, self._rng), learned, self._rng)


def sample(candidates: Sequence[AnyCandidate], rng: random.Random) -> Sequence[AnyCandidate]:
    """All candidates if there are few, otherwise a random sample."""
    return candidates if len(candidates) <= SCAN else rng.sample(candidates, SAMPLE)


def find_least_work(
    candidates: Sequence[AnyCandidate], learned: LearnedState, rng: random.Random
) -> AnyCandidate:
    """The candidate with the least outstanding work; ties are broken at random."""
    least, best = float("inf"), []
    key: object = None
    rates = learned.rates_of(candidates[0])
    for candidate in candidates:
        if candidate.rates_key is not key:
            key = candidate.rates_key
            rates = learned.rates_of(candidate)
        work_s = (
            rates.prefill_s * candidate.prefill_tokens
            + rates.decode_s * candidate.decode_tokens
            # Requests of unknown size count too: many short ones are work.
            + 1e-6 * candidate.in_flight
        )
        if work_s < least:
            least, best = work_s, [candidate]
        elif work_s == least:
            best.append(candidate)
    return best[0] if len(best) == 1 else rng.choice(best)
