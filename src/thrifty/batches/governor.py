"""How many lines of batches a replica may have in flight: plain code over plain state.

Interactive requests have precedence: each takes the slots of `displace` lines from the moment that
it is sent. Slots are returned to lines only after the replica has had room for `settle_s`, so that
a burst does not start and cancel lines with every request.
"""

from __future__ import annotations

import math

import msgspec


class GovernorSettings(msgspec.Struct, frozen=True):
    """Settings of the policy."""

    reserve: int = 0
    """Slots reserved at each replica for interactive requests."""
    displace: float = 1.0
    """How many lines one interactive request displaces."""
    settle_s: float = 0.05
    """How long a slot must have been free before lines may take it."""


class LineLimit:
    """One replica's slots for lines."""

    __slots__ = ("_rises_s", "limit")

    def __init__(self) -> None:
        self.limit: int | None = None
        """How many lines may be in flight; None before the first update."""
        self._rises_s = 0.0

    def update(
        self, *, slots: int, interactive: float, settings: GovernorSettings, now_s: float
    ) -> int:
        """Update and return the limit. `slots` is the replica's concurrency, or 0 if it is not
        ready; `interactive` is the number of other requests running or waiting there. The limit
        falls at once and rises after the replica has had room for a while.
        """
        taken = math.ceil(interactive * settings.displace) + settings.reserve
        room = max(0, slots - taken)
        if self.limit is None or room <= self.limit or now_s >= self._rises_s:
            self.limit = room
            self._rises_s = now_s + settings.settle_s
        return self.limit
