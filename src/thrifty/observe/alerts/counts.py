"""Judged, failed and slow requests by minute, read from the request log a piece at a time.

The log is read backwards once, in pieces of bounded length, and then only its end: the last minutes
again and again, because a request is written when it ends and counts where it began. Windows that
reach further back than was read are not judged yet. Times are the wall clock's, as in the log; a
clock that is set back has minutes of the future ignored until it comes there again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from thrifty.db import Database
from thrifty.db.alerts import MinuteCount, Objective, count_verdicts
from thrifty.observe.burn import WINDOWS_S

MINUTE_S = 60
KEEP_MINUTES = max(WINDOWS_S) // MINUTE_S
PIECE_MINUTES = 30
"""How much of the log one query reads."""
BUDGET_S = 1.0
"""How long one look may read backwards."""
LATE_MINUTES = 3
"""Minutes that every look reads again."""
VERY_LATE_MINUTES = 20
LATE_EVERY_S = 300.0
"""How often `VERY_LATE_MINUTES` are read again: for requests that took long."""

Place = tuple[str, str]
"""Deployment and version."""


class Totals:
    """Requests of a window."""

    __slots__ = ("failed", "judged", "slow")

    def __init__(self) -> None:
        self.judged = 0
        self.failed = 0
        self.slow = 0

    def share(self, name: str) -> float:
        """The share of `failed` or `slow` ones; 0 of none."""
        return float(getattr(self, name)) / self.judged if self.judged else 0.0


class Counts:
    """The counts of the last days. Used by one thread."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._minutes: dict[int, list[MinuteCount]] = {}
        self._read_from: int | None = None
        """The oldest minute that was read; those after it are known."""
        self._read_until = 0
        self._late_s = 0.0

    def read(self, database: Database, objectives: Sequence[Objective]) -> None:
        """Read what is new, and some of what is old. Raises `DatabaseError`."""
        now = int(self._clock() // MINUTE_S)
        if self._read_from is None or not self._read_from <= now <= self._read_until + KEEP_MINUTES:
            # The first look, or the clock has moved out of all that is known.
            self._minutes.clear()
            self._read_from = self._read_until = now
        late = LATE_MINUTES
        if abs(self._clock() - self._late_s) >= LATE_EVERY_S:
            late, self._late_s = VERY_LATE_MINUTES, self._clock()
        first = max(self._read_from, min(self._read_until, now) - late)
        self._take(database, objectives, first, now + 1)
        self._read_until = now
        self._read_backwards(database, objectives, now)
        self._forget(now)

    def sum_up(self, window_s: int) -> dict[Place, Totals] | None:
        """The totals of the last `window_s` seconds by version; None if not all of them was
        read.
        """
        if self._read_from is None:
            return None
        first = self._read_until - window_s // MINUTE_S + 1
        if first < self._read_from and not self.complete:
            return None
        found: dict[Place, Totals] = defaultdict(Totals)
        for minute in range(first, self._read_until + 1):
            for count in self._minutes.get(minute, ()):
                totals = found[count.deployment, count.version]
                totals.judged += count.judged
                totals.failed += count.failed
                totals.slow += count.slow
        return found

    @property
    def complete(self) -> bool:
        """Whether all windows are known."""
        return self._read_from is not None and self._read_from <= self._read_until - KEEP_MINUTES

    def _read_backwards(
        self, database: Database, objectives: Sequence[Objective], now: int
    ) -> None:
        assert self._read_from is not None
        until_s = time.monotonic() + BUDGET_S
        while not self.complete and time.monotonic() < until_s:
            first = max(now - KEEP_MINUTES, self._read_from - PIECE_MINUTES)
            self._take(database, objectives, first, self._read_from)
            self._read_from = first

    def _take(
        self, database: Database, objectives: Sequence[Objective], first: int, end: int
    ) -> None:
        """Read the minutes from `first` to before `end` anew."""
        found = count_verdicts(database, first * MINUTE_S, end * MINUTE_S, objectives)
        for minute in [one for one in self._minutes if first <= one < end]:
            del self._minutes[minute]
        for count in _only_known(found):
            self._minutes.setdefault(count.minute, []).append(count)

    def _forget(self, now: int) -> None:
        for minute in [one for one in self._minutes if not now - KEEP_MINUTES <= one <= now]:
            del self._minutes[minute]
        self._read_from = max(self._read_from or 0, now - KEEP_MINUTES)


def _only_known(found: Iterable[MinuteCount]) -> Iterable[MinuteCount]:
    """Without requests that were for no version: no replica could have served them."""
    return (count for count in found if count.deployment)
