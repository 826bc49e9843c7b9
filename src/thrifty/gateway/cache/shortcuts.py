"""Requests whose very bytes were answered from the cache before need not be read again.

Decoding, checking and sorting a body to find its key takes longer than everything else that a hit
costs. What was found out about a body stays true as long as its deployment and its version are the
same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from thrifty.db.fleet import DeploymentRow, VersionRow
from thrifty.gateway.state.call import Call, Form, Target
from thrifty.gateway.state.deployment import Deployment

MAX_BODY_BYTES = 32_768
"""Larger bodies are read each time."""
BODY_FACTOR = 5
SHORTCUT_BYTES = 1_000
"""A body is kept as it came and decoded: so many times its size, and so much beside."""
_OWN_WAY = (b"x-thrifty-conversation", b"x-thrifty-version")
"""Headers that decide who answers, or how: such requests are read as any other."""


class _Known(NamedTuple):
    body: dict[str, Any]
    deployment: DeploymentRow
    version: VersionRow
    conversation_id: str
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

    def take(self, call: Call, names: Mapping[str, Deployment]) -> bytes | None:
        """Fill the call in and return its cache key, where its body is known; else None. `names`
        are the deployments by what clients may write in `model`.
        """
        exchange = call.exchange
        if len(exchange.body) > MAX_BODY_BYTES or not self._known:
            return None
        place = (call.tenant, exchange.path, exchange.body)
        known = self._known.get(place)
        if known is None or any(name in exchange.headers for name in _OWN_WAY):
            return None
        deployment = names.get(known.body["model"])
        if deployment is None or deployment.row is not known.deployment:
            self._drop(place)
            return None
        version = deployment.choose(known.conversation_id)
        if version.row is not known.version or not version.ready:
            return None
        self._known.move_to_end(place)
        call.form = Form(known.body, known.stream, known.include_usage)
        call.target = Target(deployment, version, version, known.conversation_id)
        return known.key

    def note(self, call: Call, key: bytes) -> None:
        """Remember a call that was answered from the cache."""
        exchange, form, target = call.exchange, call.understood, call.placed
        if len(exchange.body) > MAX_BODY_BYTES or target.rerouted or target.pinned:
            return
        place = (call.tenant, exchange.path, exchange.body)
        if place in self._known or "model" not in form.body:
            return
        if any(name in exchange.headers for name in _OWN_WAY):
            return
        size_bytes = SHORTCUT_BYTES + BODY_FACTOR * len(exchange.body)
        self._known[place] = _Known(
            form.body, target.deployment.row, target.version.row, target.conversation_id,
            form.stream, form.include_usage, key, size_bytes,
        )  # fmt: skip
        self.size_bytes += size_bytes
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._known)))

    def _drop(self, place: tuple[str, str, bytes]) -> None:
        self.size_bytes -= self._known.pop(place).size_bytes
