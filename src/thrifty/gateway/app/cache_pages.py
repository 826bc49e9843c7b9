"""`/v1/cache`: statistics of the exact cache, and purges. Requires an admin key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from thrifty.db.cache import add_purge, read_cache_stats, save_cache_stats
from thrifty.db.keys import Key
from thrifty.errors import DatabaseError
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.cache.answers import AnswerCache
from thrifty.gateway.state.reader import TableReader
from thrifty.http.exchange import Exchange
from thrifty.openai.errors import bad_request, explain_database
from thrifty.types import Role

PATH = "/v1/cache"
FILTERS = {"deployment": 64, "version": 128, "tenant": 64}
"""What a purge may be limited to, and the longest value, as long as its column."""
PUBLISH_S = 2.0
"""How often a worker writes its statistics to the database, if they have changed."""
KEEP_FRESH_S = 6.0
_encode = msgspec.json.Encoder().encode


class CachePages:
    """The cache endpoint, which reports for all workers."""

    def __init__(self, reader: TableReader, cache: AnswerCache) -> None:
        self._reader = reader
        self._cache = cache

    def routes(self) -> list[OwnRoute]:
        """The routes of this endpoint."""
        return [
            OwnRoute("GET", PATH, Role.ADMIN, self._show, "what the exact cache holds and saved"),
            OwnRoute(
                "DELETE", PATH, Role.ADMIN, self._forget,
                "purge cached answers, all or by deployment, version or tenant",
            ),
        ]  # fmt: skip

    async def _show(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        with _database_needed():
            stats = await asyncio.to_thread(read_cache_stats, self._reader.database)
        exchange.respond(200, _encode({"object": "cache.stats", **summarize(stats)}))

    async def _forget(self, exchange: Exchange, key: Key | None, _: Any) -> None:
        filters = _read_filters(exchange.query)
        who = f"{key.name if key is not None else 'loopback'} (DELETE {PATH})"
        with _database_needed():
            answer = await self._purge(filters, who)
        exchange.respond(200, _encode(answer))

    async def publish(self, worker: str) -> None:
        """Write this worker's statistics periodically, forever."""
        last: dict[str, Any] = {}
        written_s = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(PUBLISH_S)
            stats = self._cache.stats()
            if stats == last and loop.time() - written_s < KEEP_FRESH_S:
                continue
            try:
                await asyncio.to_thread(save_cache_stats, self._reader.database, worker, stats)
            except DatabaseError:
                continue  # the table's reader logs this
            last, written_s = stats, loop.time()

    async def _purge(self, filters: dict[str, str], who: str) -> dict[str, Any]:
        purge = await asyncio.to_thread(add_purge, self._reader.database, **filters, who=who)
        await self._reader.refresh()
        return {"object": "cache.purge", **vars(purge)}


@contextlib.contextmanager
def _database_needed() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        raise explain_database(error) from None


def summarize(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of each worker, and their totals."""
    deployments: dict[str, dict[str, float]] = {}
    shared: dict[str, float] | None = None
    for worker in workers:
        for name, stats in worker["deployments"].items():
            _add(deployments.setdefault(name, {}), stats)
        if worker["shared"] is not None:
            shared = _add(shared or {}, worker["shared"])
    total: dict[str, float] = {}
    for stats in deployments.values():
        _add(total, stats)
        stats["hit_ratio"] = _ratio(stats)
    total = {"entries": 0, "bytes": 0, **total, "hit_ratio": _ratio(total)}
    return {"total": total, "deployments": deployments, "shared": shared, "workers": workers}


def _add(sums: dict[str, float], stats: dict[str, float]) -> dict[str, float]:
    for name, value in stats.items():
        sums[name] = sums.get(name, 0) + value
    return sums


def _ratio(stats: dict[str, float]) -> float:
    asked = stats.get("hit", 0) + stats.get("miss", 0)
    return stats.get("hit", 0) / asked if asked else 0.0


def _read_filters(query: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query),
            errors="strict",
        )  # fmt: skip
    except (UnicodeDecodeError, ValueError):
        raise bad_request("The query string is not valid.", code="invalid_value") from None
    filters: dict[str, str] = {}
    for name, value in pairs:
        if name not in FILTERS:
            # Ignoring a misspelt filter would purge too much.
            raise bad_request(
                f"Unknown parameter: '{name[:64]}'. Filters are {', '.join(FILTERS)}.",
                name[:64],
                "unknown_parameter",
            )
        longest = FILTERS[name]
        if not 0 < len(value) <= longest or not value.isprintable() or name in filters:
            raise bad_request(
                f"'{name}' must be given once, with 1 to {longest} printable characters.",
                name,
                "invalid_value",
            )
        filters[name] = value
    return filters
