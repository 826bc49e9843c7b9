"""Requests whose very bytes were answered from the cache before need not be read again.

Decoding, checking and sorting a body to find its key takes longer than everything else that a hit
costs. What was found out about a body stays true as long as its deployment is the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from thrifty.gateway.call import Call
from thrifty.gateway.table import Deployment

MAX_BODY_BYTES = 32_768
"""Larger bodies are read each time."""
BODY_FACTOR = 5
SHORTCUT_BYTES = 1_000
"""A body is kept as it came and decoded: so many times its size, and so much beside."""


class _Known(NamedTuple):
    body: dict[str, Any]
    deployment: Deployment
    stream: bool
    include_usage: bool
    key: bytes
    size_bytes: int


class Shortcuts:
    """What is known of bodies, by tenant, path and bytes; the least recently used goes first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._known: OrderedDict[tuple[str, str, bytes], _Known] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def take(self, call: Call, names: Mapping[str, Deployment]) -> bool:
        """Fill the call in, where its body is known; then it is admitted, and has its key. `names`
        are the deployments by what clients may write in `model`.
        """
        exchange = call.exchange
        if len(exchange.body) > MAX_BODY_BYTES:
            return False
        place = (call.tenant, exchange.path, exchange.body)
        known = self._known.get(place)
        if known is None:
            return False
        deployment = known.deployment
        if names.get(known.body["model"]) is not deployment:
            self._drop(place)
            return False
        self._known.move_to_end(place)
        call.body = known.body
        call.deployment = deployment
        call.stream = known.stream
        call.include_usage = known.include_usage
        call.cache_key = known.key
        return True

    def note(self, call: Call, key: bytes) -> None:
        """Remember a call that was answered from the cache."""
        exchange = call.exchange
        if len(exchange.body) > MAX_BODY_BYTES or call.deployment is None:
            return
        place = (call.tenant, exchange.path, exchange.body)
        if place in self._known or "model" not in call.body:
            return
        size_bytes = SHORTCUT_BYTES + BODY_FACTOR * len(exchange.body)
        self._known[place] = _Known(
            call.body, call.deployment, call.stream, call.include_usage, key, size_bytes
        )
        self.size_bytes += size_bytes
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._known)))

    def _drop(self, place: tuple[str, str, bytes]) -> None:
        self.size_bytes -= self._known.pop(place).size_bytes
