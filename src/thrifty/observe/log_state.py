"""The health of the request log, as `/readyz`, `thrifty status` and the metrics show it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

STOPPED_S = 10.0
"""A log that could not be written for this long counts as stopped."""


class LogHealth(StrEnum):
    """The health of the request log."""

    OK = "ok"
    BEHIND = "behind"
    """Rows wait longer than they should; none is lost unless the queue is full."""
    STOPPED = "stopped"
    """Nothing has been written for `STOPPED_S`, or the writer has ended."""


@dataclass(frozen=True)
class LogState:
    """The log's health, with the reason and the time (seconds since 1970) it began."""

    health: LogHealth = LogHealth.OK
    reason: str = ""
    since_s: float | None = None
    waiting_rows: int = 0

    def describe(self) -> dict[str, Any] | None:
        """What is wrong with the log, for `/readyz` and `thrifty status`; None if nothing is."""
        if self.health is LogHealth.OK:
            return None
        return {
            "state": self.health.value, "reason": self.reason, "since_s": self.since_s,
            "waiting_rows": self.waiting_rows,
        }  # fmt: skip


def judge_fault(reason: str, since_s: float, waiting_rows: int) -> LogState:
    """The state of a log that could not be written since then."""
    long_ago = time.time() - since_s >= STOPPED_S
    health = LogHealth.STOPPED if long_ago else LogHealth.BEHIND
    return LogState(health, reason, since_s, waiting_rows)
