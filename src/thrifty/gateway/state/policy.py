"""What a routing policy is: plain code over plain state.

No sockets and no clock of its own, so that tests, and a simulator, run the very code that routes
real requests, over as many replicas as they like.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from thrifty.gateway.state.prefix_index import PrefixIndex
from thrifty.gateway.state.rates import Rates
from thrifty.gateway.state.routed_request import RoutedRequest


class Candidate(Protocol):
    """A replica that may be chosen, and what is outstanding on it, by this gateway's account."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests that were sent to it and have not ended."""
        ...

    @property
    def waiting(self) -> int:
        """Those of them whose answer has not begun."""
        ...

    @property
    def prefill_tokens(self) -> float:
        """Prompt tokens that it has still to compute, without those in its prefix cache."""
        ...

    @property
    def decode_tokens(self) -> float:
        """Tokens that it is expected to generate still."""
        ...

    @property
    def slot(self) -> int:
        """Its number in the prefix index."""
        ...

    @property
    def rates_key(self) -> Any:
        """What it shares its speed with: version, engine, device."""
        ...


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


class RoutingPolicy(Protocol):
    """Chooses one of the candidates, of which there are at least two."""

    wants_prefix: bool
    """Whether it counts what replicas have cached."""
    wants_affinity: bool
    """Whether it goes by the session or the beginning of a prompt."""

    def choose(
        self, candidates: Sequence[AnyCandidate], request: RoutedRequest, known: Knowledge
    ) -> AnyCandidate:
        """The replica for this request."""
        ...


class Knowledge:
    """What was learned of a deployment's replicas: their prefixes and their speeds."""

    def __init__(self) -> None:
        self.prefixes = PrefixIndex()
        self.rates: dict[Any, Rates] = {}
        self._listed: Sequence[Any] = ()
        self._by_slot: dict[int, Any] = {}

    def rates_of(self, candidate: Candidate) -> Rates:
        """The speeds of that candidate's kind."""
        rates = self.rates.get(candidate.rates_key)
        if rates is None:
            rates = self.rates[candidate.rates_key] = Rates()
        return rates

    def by_slot(self, candidates: Sequence[AnyCandidate]) -> dict[int, AnyCandidate]:
        """The candidates by their numbers in the prefix index. A list is read once."""
        if candidates is not self._listed:
            self._listed = candidates
            self._by_slot = {candidate.slot: candidate for candidate in candidates}
        return self._by_slot
