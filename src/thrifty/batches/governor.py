"""How many lines of batches a replica may have in flight: plain code over plain state.

Interactive requests come first: each of them takes the place of `displace` lines, from the moment
that it is sent. Places are given back slowly, once the replica has had room for `settle_s`, so that
a burst does not start and cancel lines with every request.
"""

from __future__ import annotations

import math

import msgspec


class GovernorSettings(msgspec.Struct, frozen=True):
    """What the policy goes by."""

    reserve: int = 0
    """Places that are kept free at each replica for interactive requests that may come."""
    displace: float = 1.0
    """How many lines an interactive request takes the place of."""
    settle_s: float = 0.05
    """How long there must have been room before lines take it."""


class Share:
    """One replica's places for lines."""

    __slots__ = ("_rises_s", "limit")

    def __init__(self) -> None:
        self.limit: int | None = None
        """How many lines may be in flight; None before the first look."""
        self._rises_s = 0.0

    def look(
        self, *, slots: int, interactive: float, settings: GovernorSettings, now_s: float
    ) -> int:
        """The limit now. `slots` is how many requests the replica works on at once, 0 where it is
        not ready; `interactive` how many others are at it or wait for it. Falls at once, rises
        when it has had room for a while.
        """
        taken = math.ceil(interactive * settings.displace) + settings.reserve
        room = max(0, slots - taken)
        if self.limit is None or room <= self.limit or now_s >= self._rises_s:
            self.limit = room
            self._rises_s = now_s + settings.settle_s
        return self.limit
