"""Waiting until a replica on another machine has said all that it was asked."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

from thrifty.engines.probe import read_server_load
from thrifty.engines.server import KEY_VARIABLE
from thrifty.http.client import TransportError

log = logging.getLogger(__name__)

IDLE_POLL_S = 0.25
DRAIN_LIMIT_S = 3600.0
"""A replica that is drained for another one may end its requests for so long."""
SILENT_AFTER = 3
"""Questions in a row without an answer."""


async def wait_idle(name: str, url: str, is_there: Callable[[], bool]) -> None:
    """Wait until the replica at `url` works on nothing, twice in a row, or does not say, or goes."""
    key = os.environ.get(KEY_VARIABLE) or None
    deadline_s = time.monotonic() + DRAIN_LIMIT_S
    idle = silent = 0
    while is_there() and idle < 2 and silent < SILENT_AFTER:
        try:
            load = await read_server_load(url, key=key)
            idle = idle + 1 if load.running + load.waiting == 0 else 0
            silent = 0
        except (TransportError, OSError, ValueError):
            silent += 1
        if time.monotonic() > deadline_s:
            log.warning("%s: still busy after %g s; ended", name, DRAIN_LIMIT_S)
            return
        await asyncio.sleep(IDLE_POLL_S)
