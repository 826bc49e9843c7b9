"""The number of requests that other gateway workers have at replicas, as the replicas report it.

A worker knows its own requests at once. It learns those of other workers from the replica's load
endpoint, which reports the number of active requests. It polls several times a second while lines
are in flight there, and not at all if it is the only worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from thrifty.gateway.state.replica import Replica
from thrifty.http.client import HttpClient, TransportError

POLL_S = 0.1
TIMEOUT_S = 1.0
SILENT_S = 30.0
"""A server that does not report its load is polled again after this long."""


class _Load(msgspec.Struct):
    active_requests: int


_decode = msgspec.json.Decoder(_Load).decode


class LoadWatch:
    """Polls the load of replicas, and remembers the last result of each."""

    def __init__(self) -> None:
        self._client = HttpClient()
        self._last: dict[str, int] = {}
        self._silent_until_s: dict[str, float] = {}

    async def poll(self, replicas: Sequence[Replica]) -> dict[str, int]:
        """Requests at each replica that this worker did not send: the smaller of the last two
        results, because a request that is seen only once may be about to end.
        """
        loads = await asyncio.gather(*(self._ask(replica) for replica in replicas))
        found: dict[str, int] = {}
        now: dict[str, int] = {}
        for replica, load in zip(replicas, loads, strict=True):
            now[replica.id] = max(0, load - replica.in_flight)
            found[replica.id] = min(now[replica.id], self._last.get(replica.id, 0))
        self._last = now
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    async def _ask(self, replica: Replica) -> int:
        silent = self._silent_until_s.get(replica.id, 0.0) > time.monotonic()
        url = replica.load_url
        if silent or url is None:
            return 0
        try:
            status, body = await self._client.fetch(url, timeout_s=TIMEOUT_S)
            if status == 200:
                return _decode(body).active_requests
        except (TransportError, msgspec.DecodeError, UnicodeDecodeError):
            pass
        self._silent_until_s[replica.id] = time.monotonic() + SILENT_S
        return 0
