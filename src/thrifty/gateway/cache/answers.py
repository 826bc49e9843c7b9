"""The whole exact cache: this process's memory, the shared tier if there is one, and their
invalidation by purges and by versions that are no longer served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from thrifty.db.cache import Purge
from thrifty.gateway.cache.exact import Entry, ExactCache, Owner
from thrifty.gateway.cache.purges import Purges
from thrifty.gateway.cache.shared import SharedTier
from thrifty.gateway.state.shared_store import SharedStore
from thrifty.gateway.state.table import RoutingTable
from thrifty.observe.metrics import GatewayMetrics


class SharedSettings(msgspec.Struct, frozen=True):
    """Settings of the shared tier. Times are in seconds."""

    timeout_s: float = 0.01
    wait_s: float = 30.0
    stream_wait_s: float = 1.0
    max_entry_bytes: int = 1_000_000


class AnswerCache:
    """The answer cache of one worker."""

    def __init__(
        self,
        memory: ExactCache,
        table: RoutingTable,
        metrics: GatewayMetrics,
        store: SharedStore | None = None,
        settings: SharedSettings | None = None,
    ) -> None:
        self.memory = memory
        self.purges = Purges()
        self.shared: SharedTier | None = None
        if store is not None:
            chosen = settings or SharedSettings()
            self.shared = SharedTier(store, self.purges, **msgspec.structs.asdict(chosen))
            metrics.shared_cache.stats = vars(self.shared.stats)
        self._table = table
        self._metrics = metrics
        self._served: set[tuple[str, str, str]] = set()
        """Deployment, label and revision of each served version."""
        self._loaded = False
        table.listeners.append(self._note_table)

    def start(self) -> None:
        """Start the shared tier."""
        if self.shared is not None:
            self.shared.start()

    async def close(self) -> None:
        """Stop the shared tier."""
        if self.shared is not None:
            await self.shared.close()

    def store(self, key: bytes, entry: Entry, ttl_s: float) -> bool:
        """Cache an answer in memory unless it was purged or its version is no longer served;
        returns whether others may be given it.
        """
        if self.purges.cover(entry.owner, entry.purge_id) or (
            self._loaded and not self._is_served(entry.owner)
        ):
            return False
        self.memory.put(key, entry, ttl_s)
        return True

    def stats(self) -> dict[str, Any]:
        """This worker's cache statistics."""
        shared = None
        if self.shared is not None:
            shared = {"available": self.shared.available, **vars(self.shared.stats)}
        sizes = self.memory.sizes()
        deployments = self._metrics.requests.cache_stats()
        for name, (entries, size_bytes) in sizes.items():
            deployments.setdefault(name, {}).update(entries=entries, bytes=size_bytes)
        return {
            "entries": len(self.memory),
            "bytes": self.memory.size_bytes,
            "deployments": deployments,
            "shared": shared,
        }

    def _note_table(self) -> None:
        """After a read of the routing table: drop purged answers and those of removed versions."""
        first, self._loaded = not self._loaded, True
        for purge in self.purges.update(self._table.purges):
            self._invalidate("purge", _choose_purged(purge))
            if self.shared is not None and not first:
                self.shared.delete_purged(purge)
        served = {(v.deployment, v.label, v.revision) for v in self._table.versions()}
        if served != self._served:
            self._served = served
            self._invalidate("promotion", lambda owner: not self._is_served(owner))

    def _is_served(self, owner: Owner) -> bool:
        return (owner.deployment, owner.version, owner.revision) in self._served

    def _invalidate(self, reason: str, chosen: Callable[[Owner], bool]) -> None:
        count = self.memory.invalidate(chosen)
        if count:
            self._metrics.cache_forgotten.labels(reason).inc(count)
            asyncio.get_running_loop().call_soon(self._free)

    def _free(self) -> None:
        if self.memory.free():
            asyncio.get_running_loop().call_soon(self._free)


def _choose_purged(purge: Purge) -> Callable[[Owner], bool]:
    return lambda owner: purge.matches(owner.deployment, owner.version, owner.tenant)
