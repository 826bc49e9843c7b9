"""Keeps a clock that was set wrong from deleting what is young.

What is deleted by age goes by the wall clock, as the times in the rows do. A clock that jumps ahead
by years, as one does that lost its battery or its time server, would have everything deleted at
once. After a jump nothing is deleted for a while, in which somebody can set the clock right.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

JUMP_S = 3600.0
"""A smaller jump deletes what would be deleted within the hour."""
PAUSE_S = 6 * 3600.0


class ClockWatch:
    """Compares the wall clock with one that is never set."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._offset_s = wall() - steady()
        self._jumped_s: float | None = None

    def may_delete(self) -> bool:
        """Whether to delete by age now."""
        wall_s, steady_s = self._wall(), self._steady()
        ahead_s = wall_s - steady_s - self._offset_s
        if ahead_s > JUMP_S:
            if self._jumped_s is None:
                self._jumped_s = steady_s
                log.warning(
                    "the clock was set ahead by %.0f s; nothing is deleted by its age for %.0f h",
                    ahead_s, PAUSE_S / 3600,
                )  # fmt: skip
            if steady_s - self._jumped_s < PAUSE_S:
                return False
        # It was right before and is now, or has had its time to be set right.
        self._offset_s, self._jumped_s = wall_s - steady_s, None
        return True
