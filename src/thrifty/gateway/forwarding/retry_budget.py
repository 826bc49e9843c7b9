"""A budget for retries: a failing fleet must not be sent twice the load.

Each request earns a fraction of a retry, up to a reserve; each retry spends one.
"""

from __future__ import annotations

EARNED_PER_REQUEST = 0.2
RESERVE = 50.0
INITIAL = 20.0


class RetryBudget:
    """The number of retries that may be made now."""

    __slots__ = ("_balance",)

    def __init__(self) -> None:
        self._balance = INITIAL

    def earn(self) -> None:
        """Count a request."""
        self._balance = min(RESERVE, self._balance + EARNED_PER_REQUEST)

    def spend(self) -> bool:
        """Spend one retry, if there is one."""
        if self._balance < 1:
            return False
        self._balance -= 1
        return True
