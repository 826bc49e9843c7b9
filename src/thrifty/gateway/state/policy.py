"""The interface of routing policies: plain code over plain state.

Policies use no sockets and no clock. Tests and simulators thus run the code that routes real
requests, with any number of replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from thrifty.gateway.state.prefix_index import PrefixIndex
from thrifty.gateway.state.rates import Rates
from thrifty.gateway.state.routed_request import RoutedRequest


class Candidate(Protocol):
    """A replica that may be chosen, with its outstanding work as counted by this gateway."""

    @property
    def id(self) -> str:
        """The replica's id."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests that were sent to it and have not ended."""
        ...

    @property
    def waiting(self) -> int:
        """Requests in flight whose answer has not begun."""
        ...

    @property
    def prefill_tokens(self) -> float:
        """Prompt tokens that it still has to compute, without those in its prefix cache."""
        ...

    @property
    def decode_tokens(self) -> float:
        """Tokens that it is still expected to generate."""
        ...

    @property
    def slot(self) -> int:
        """Its number in the prefix index."""
        ...

    @property
    def rates_key(self) -> Any:
        """Replicas with the same key share their speeds: same version, engine and device."""
        ...


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


class RoutingPolicy(Protocol):
    """Chooses one of the candidates, of which there are at least two."""

    wants_prefix: bool
    """Whether it uses the prefix index."""
    wants_affinity: bool
    """Whether it routes by session or by the beginning of the prompt."""

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, learned: LearnedState
    ) -> AnyCandidate:
        """The replica for this request."""
        ...


class LearnedState:
    """Learned state of a version's replicas: cached prefixes and speeds."""

    def __init__(self) -> None:
        self.prefixes = PrefixIndex()
        self.rates: dict[Any, Rates] = {}
        self._listed: Sequence[Any] = ()
        self._by_slot: dict[int, Any] = {}

    def rates_of(self, candidate: Candidate) -> Rates:
        """The speeds of a candidate's kind of replica."""
        rates = self.rates.get(candidate.rates_key)
        if rates is None:
            rates = self.rates[candidate.rates_key] = Rates()
        return rates

    def by_slot(self, candidates: Sequence[AnyCandidate]) -> dict[int, AnyCandidate]:
        """The candidates by their slot in the prefix index. Cached for the last list seen."""
        if candidates is not self._listed:
            self._listed = candidates
            self._by_slot = {candidate.slot: candidate for candidate in candidates}
        return self._by_slot
