"""What a routing policy is: plain code over plain state.

No sockets and no clock of its own, so that tests, and a simulator, run the very code that routes
real requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """A replica that may be chosen."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests that were sent to it and have not ended."""
        ...


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


class RoutingPolicy(Protocol):
    """Chooses one of the candidates, of which there is at least one."""

    def choose(self, candidates: Sequence[AnyCandidate]) -> AnyCandidate:
        """The replica for the next request."""
        ...
