"""Multi-window burn rates: how fast an error budget is spent, and when that is an alert.

The budget of an objective of 99% is one request in a hundred. A burn rate of 14.4 spends 2% of a
month's budget in an hour. An alert needs both windows over the rate: the long one says that it
matters, the short one that it still goes on. The table is that of the SRE Workbook, chapter 5.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["page", "ticket"]
PAGE: Severity = "page"
TICKET: Severity = "ticket"


class Burn(NamedTuple):
    """One pair of windows, in seconds, and the rate that is an alert in both."""

    rate: float
    long_s: int
    short_s: int
    severity: Severity


_MINUTE, _HOUR, _DAY = 60, 3600, 86400
BURNS = (
    Burn(14.4, _HOUR, 5 * _MINUTE, PAGE),
    Burn(6.0, 6 * _HOUR, 30 * _MINUTE, PAGE),
    Burn(3.0, _DAY, 2 * _HOUR, TICKET),
    Burn(1.0, 3 * _DAY, 6 * _HOUR, TICKET),
)
"""Fastest first."""
WINDOWS_S = tuple(sorted({window for burn in BURNS for window in (burn.long_s, burn.short_s)}))
LEAST_OBJECTIVE = 0.94
"""With a lower objective not even failing all requests would be the fastest burn."""
LATENCY_OBJECTIVE = 0.95
"""The share of requests within the latencies of `slo`, which are 95th percentiles."""


def write_window(seconds: int) -> str:
    """A window as Prometheus writes it."""
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
