"""Cache hits by the bytes of a body, without parsing it.

Decoding, validating and sorting a body to compute its key takes longer than the rest of a hit. The
result for a body stays valid as long as its deployment and version do not change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from thrifty.db.fleet import DeploymentRow, VersionRow
from thrifty.gateway.state.call import Call, ParsedRequest, Target
from thrifty.gateway.state.deployment import Deployment
from thrifty.openai.stream_options import StreamOptions

MAX_BODY_BYTES = 32_768
"""Larger bodies are parsed each time."""
BODY_FACTOR = 5
SHORTCUT_BYTES = 1_000
"""A stored body, raw and decoded, counts `BODY_FACTOR` times its size plus this much."""
_VERSION_HEADERS = (b"x-thrifty-conversation", b"x-thrifty-version")
"""Headers that affect which version answers, or how: such requests are always parsed."""


class _Entry(NamedTuple):
    body: dict[str, Any]
    deployment: DeploymentRow
    version: VersionRow
    conversation_id: str
    stream: bool
    stream_options: StreamOptions
    key: bytes
    size_bytes: int


class Shortcuts:
    """Parsed bodies by tenant, path and bytes; the least recently used are evicted first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, str, bytes], _Entry] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, call: Call, names: Mapping[str, Deployment]) -> bytes | None:
        """Fill in the call and return its cache key if its body is known; else None. `names` maps
        names that clients use in `model` to deployments.
        """
        exchange = call.exchange
        if len(exchange.body) > MAX_BODY_BYTES or not self._entries:
            return None
        entry_key = (call.tenant, exchange.path, exchange.body)
        entry = self._entries.get(entry_key)
        if entry is None or any(name in exchange.headers for name in _VERSION_HEADERS):
            return None
        deployment = names.get(entry.body["model"])
        if deployment is None or deployment.row is not entry.deployment:
            self._drop(entry_key)
            return None
        version = deployment.choose(entry.conversation_id)
        if version.row is not entry.version or not version.ready:
            return None
        self._entries.move_to_end(entry_key)
        call.parsed = ParsedRequest(entry.body, entry.stream, entry.stream_options)
        call.target = Target(deployment, version, version, entry.conversation_id)
        return entry.key

    def note(self, call: Call, key: bytes) -> None:
        """Remember a call that was answered from the cache."""
        exchange, parsed, target = call.exchange, call.admitted, call.placed
        if len(exchange.body) > MAX_BODY_BYTES or target.rerouted or target.pinned:
            return
        entry_key = (call.tenant, exchange.path, exchange.body)
        if entry_key in self._entries or "model" not in parsed.body:
            return
        if any(name in exchange.headers for name in _VERSION_HEADERS):
            return
        size_bytes = SHORTCUT_BYTES + BODY_FACTOR * len(exchange.body)
        self._entries[entry_key] = _Entry(
            parsed.body, target.deployment.row, target.version.row, target.conversation_id,
            parsed.stream, parsed.stream_options, key, size_bytes,
        )  # fmt: skip
        self.size_bytes += size_bytes
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, entry_key: tuple[str, str, bytes]) -> None:
        self.size_bytes -= self._entries.pop(entry_key).size_bytes
