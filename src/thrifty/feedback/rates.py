"""How much feedback one user and one tenant may send: token buckets in this worker's memory.

They protect the database from a flood. What is kept of one user in the long run is bounded by the
database itself (`db/feedback`), whichever worker takes it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from thrifty.openai.errors import RATE_LIMIT, WireError

MAX_BUCKETS = 20_000


class Rates:
    """Counts feedback by sender. Used on one thread."""

    def __init__(
        self,
        per_user: float,
        per_tenant: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Both limits are pieces of feedback a minute; a minute's worth may come at once."""
        self._limits = {"user": per_user, "tenant": per_tenant}
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str, str], tuple[float, float]] = OrderedDict()

    def admit(self, tenant: str, voice: str) -> None:
        """Count one request of a tenant's user. Raises a 429 that says when to try again."""
        # The user first: one who sends too much takes nothing from others.
        for what, key in (("user", ("user", tenant, voice)), ("tenant", ("tenant", tenant, ""))):
            wait_s = self._take(key, self._limits[what])
            if wait_s > 0:
                raise WireError(
                    429,
                    f"More than {self._limits[what]:g} pieces of feedback a minute by one {what}; "
                    "send them later.",
                    type=RATE_LIMIT,
                    code="feedback_rate_limit",
                    retry_after_s=wait_s,
                )

    def _take(self, key: tuple[str, str, str], per_minute: float) -> float:
        """Take one piece out of a bucket; returns the seconds to wait where it is empty."""
        now_s = self._clock()
        filled, at_s = self._buckets.pop(key, (per_minute, now_s))
        filled = min(per_minute, filled + (now_s - at_s) * per_minute / 60)
        wait_s = 0.0 if filled >= 1 else (1 - filled) * 60 / per_minute
        self._buckets[key] = (filled - 1 if filled >= 1 else filled, now_s)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait_s
