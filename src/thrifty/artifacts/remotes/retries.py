"""Try again what failed because a remote was away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from thrifty.artifacts.remotes.base import RemoteAway

ATTEMPTS = 5
"""Consecutive attempts that moved nothing."""
DELAY_S = 0.5
MAX_DELAY_S = 8.0

T = TypeVar("T")


def wait_before(failures: int) -> None:
    """Wait before the attempt after so many failures."""
    time.sleep(min(MAX_DELAY_S, DELAY_S * 2 ** (failures - 1)))


def insist(call: Callable[[], T]) -> T:
    """What `call` returns, tried again while it raises `RemoteAway`; the last failure is raised."""
    for failures in range(1, ATTEMPTS):
        try:
            return call()
        except RemoteAway:
            wait_before(failures)
    return call()
