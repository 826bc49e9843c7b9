"""An alarm for replicas that receive far more, or far fewer, requests than their fair share.

Only choices made under load count: while replicas are idle, sending every request to the one with
the cached prefix is correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.gateway.state.policy import Candidate

MIN_CHOICES = 200
"""A window ends after this many choices under load per two replicas."""
MUCH, LITTLE = 2.0, 0.25
"""Multiples of the fair share."""


@dataclass(frozen=True)
class Alarm:
    """A replica whose share is far from fair. Both values are fractions of the choices."""

    replica: str
    share: float
    due: float


class ShareWatch:
    """Counts choices in windows."""

    def __init__(self) -> None:
        self._chosen: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._choices = 0
        self._seen = 0

    def note(self, chosen: str, candidates: Sequence[Candidate]) -> None:
        """Count one choice, if it was made under load."""
        # A sample of one in eight is enough and keeps a choice among a thousand cheap.
        self._seen += 1
        if self._seen % 8:
            return
        count = len(candidates)
        if sum(candidate.in_flight for candidate in candidates) < 2 * count:
            return
        self._choices += 1
        self._chosen[chosen] = self._chosen.get(chosen, 0) + 1
        for candidate in candidates:
            self._due[candidate.id] = self._due.get(candidate.id, 0.0) + 1 / count

    def take_alarms(self) -> list[Alarm] | None:
        """The alarms of a full window, after which a new one begins; None while it is not full."""
        if self._choices < MIN_CHOICES // 8 * max(1, len(self._due) // 2):
            return None
        alarms = []
        for replica, due in self._due.items():
            share = self._chosen.get(replica, 0)
            # Three standard deviations beyond the bounds, to avoid alarms by chance.
            high, low = MUCH * due, LITTLE * due
            if share > high + 3 * high**0.5 or share < low - 3 * low**0.5:
                alarms.append(Alarm(replica, share / self._choices, due / self._choices))
        self._chosen, self._due, self._choices = {}, {}, 0
        return alarms
