"""The second cache tier: answers in the Redis that gateway workers share, and locks on making them.

A worker that misses in its own memory asks once. One script returns the answer, or the right to
generate it (a `Claim`: a lock with a token that its holder renews and that expires with it), or
reports that another worker is generating it. A worker that waits polls, and takes over if the
holder disappears.

If Redis is unavailable or slow, hits are lost, never requests. A lookup waits for at most
`timeout_s`; after a few late replies in a row the tier pauses for a while. Answers are written in
the background through a bounded queue. Everything here may be lost at any time.

Keys, all under `thrifty:cache:`, contain hashes of names instead of the names:

    thrifty:cache:DEPLOYMENT:VERSION:TENANT:{KEY}       an answer, or NO_ANSWER
    thrifty:cache:DEPLOYMENT:VERSION:TENANT:{KEY}:lock  the token of the worker that makes it
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from thrifty.db.cache import PURGE_KEEP_S, Purge
from thrifty.gateway.cache.entry_format import decode_entry, encode_entry
from thrifty.gateway.cache.exact import Entry, Owner
from thrifty.gateway.cache.purges import Purges
from thrifty.gateway.state.shared_store import Script, SharedStore

log = logging.getLogger(__name__)

PREFIX = b"thrifty:cache:"
NAME_BYTES = 6
"""Length of the name hashes in keys; they only select what a purge deletes."""
NO_ANSWER = b"-"
"""Stored in place of an answer: there is none to wait for."""
NO_ANSWER_MS = 500
"""Long enough for all waiting workers to see it."""
LOCK_S = 3.0
"""A holder that has not renewed its lock for this long is assumed dead."""
RENEW_S = 1.0
FIRST_PAUSE_S = 0.005
MAX_PAUSE_S = 0.1
MAX_QUEUE_BYTES = 32_000_000
"""Bound on answers queued for Redis; more are dropped."""
WRITES_AT_ONCE = 64
LATE_TO_PAUSE = 3
PAUSE_S = 1.0
"""After `LATE_TO_PAUSE` late replies in a row, lookups pause for this long."""
SCAN_KEYS = 500

_FIND = Script(
    """
local data = redis.call('GET', KEYS[1])
if data then return {data, redis.call('PTTL', KEYS[1])} end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
"""
)
_SETTLE = Script(
    """
if redis.call('GET', KEYS[2]) == ARGV[3] then redis.call('DEL', KEYS[2]) end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)
_ABANDON = Script(
    """
if redis.call('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
return 1
"""
)
_RENEW = Script(
    """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
)


@dataclass
class SharedTierStats:
    """This worker's statistics of the second tier."""

    hits: int = 0
    misses: int = 0
    waited: int = 0
    """Requests that waited for another worker's generation."""
    late: int = 0
    """Lookups that took too long, or were skipped because earlier ones had."""
    damaged: int = 0
    written: int = 0
    written_bytes: int = 0
    dropped: int = 0
    """Answers that were too large, or found the queue full."""


class Claim:
    """The right to generate an answer. Its holder must `settle` it."""

    __slots__ = ("entry_name", "key", "lock_name", "token")

    def __init__(self, key: bytes, entry_name: bytes, token: bytes) -> None:
        self.key = key
        self.entry_name = entry_name
        self.lock_name = _lock_name(entry_name)
        self.token = token


class Found(NamedTuple):
    """An answer and its remaining time to live."""

    entry: Entry
    ttl_s: float


class SharedTier:
    """One worker's access to the shared answers. Used on one event loop."""

    def __init__(
        self,
        store: SharedStore,
        purges: Purges,
        *,
        timeout_s: float = 0.01,
        wait_s: float = 30.0,
        stream_wait_s: float = 1.0,
        max_entry_bytes: int = 1_000_000,
    ) -> None:
        """`wait_s` and `stream_wait_s` bound how long a request, or a stream, waits for another
        worker's generation before it goes to a replica itself.
        """
        self._store = store
        self._purges = purges
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self._stream_wait_s = stream_wait_s
        self._max_entry_bytes = max_entry_bytes
        self._token = os.urandom(8).hex().encode()
        self._tokens = 0
        self._claims: set[Claim] = set()
        self._queue: deque[tuple[Script, list[Any], list[Any]]] = deque()
        self._queue_bytes = 0
        self._purges_due: deque[Purge] = deque()
        self._due = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._late = 0
        self._paused_until_s = 0.0
        self.stats = SharedTierStats()

    @property
    def available(self) -> bool:
        """Whether lookups are made now."""
        return self._store.available and time.monotonic() >= self._paused_until_s

    def start(self) -> None:
        """Start writing, and renewing claims."""
        self._tasks = [asyncio.ensure_future(self._write()), asyncio.ensure_future(self._renew())]

    async def close(self, timeout_s: float = 1.0) -> None:
        """Write what is queued, for at most `timeout_s`; then stop."""
        deadline_s = time.monotonic() + timeout_s
        while self._queue and self._store.available and time.monotonic() < deadline_s:
            await asyncio.sleep(0.005)
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def find(
        self,
        key: bytes,
        owner: Owner,
        *,
        stream: bool,
        wanted: Callable[[], bool],
        is_valid: Callable[[bytes], bool] = lambda body: True,
        left_s: float | None = None,
    ) -> Found | Claim | None:
        """The answer for `key`, or the right to generate it; None if the request should go to a
        replica without a claim.

        Waits for another worker's generation, for at most `left_s` if given, and as long as
        `wanted` returns true. An answer whose body is not `is_valid` counts as damaged.
        """
        name = _entry_name(key, owner)
        self._tokens += 1
        token = b"%b:%d" % (self._token, self._tokens)
        began_s = time.monotonic()
        bound_s = self._stream_wait_s if stream else self._wait_s
        if left_s is not None:
            bound_s = min(bound_s, left_s)
        pause_s = FIRST_PAUSE_S
        faults = 0
        while True:
            answer = await self._ask(name, token)
            if answer == 1:
                claim = Claim(key, name, token)
                self._claims.add(claim)
                self.stats.misses += 1
                return claim
            if isinstance(answer, list):
                data, ttl_ms = answer
                found = self._take(key, owner, data, ttl_ms, is_valid)
                if found is not None:
                    self.stats.hits += 1
                    return found
                if data == NO_ANSWER or faults:
                    break
                # Damaged or purged: delete it, so that it is generated again.
                faults += 1
                await self._store.run("DEL", name)
                continue
            if answer is None or not wanted():
                break
            waited_s = time.monotonic() - began_s
            if pause_s == FIRST_PAUSE_S:
                self.stats.waited += 1
            if waited_s >= bound_s:
                break
            await asyncio.sleep(min(pause_s, bound_s - waited_s))
            pause_s = min(pause_s * 1.5, MAX_PAUSE_S)
        self.stats.misses += 1
        return None

    def settle(self, claim: Claim, entry: Entry | None, ttl_s: float = 0.0) -> None:
        """Publish a claim's answer, or that there is none. Never waits."""
        self._claims.discard(claim)
        names = [claim.entry_name, claim.lock_name]
        if entry is not None:
            data = encode_entry(claim.key, entry)
            ttl_ms = max(1, round(min(ttl_s, PURGE_KEEP_S / 2) * 1e3))
            if (
                len(data) <= self._max_entry_bytes
                and self._queue_bytes + len(data) <= MAX_QUEUE_BYTES
            ):
                self._put(_SETTLE, names, [data, ttl_ms, claim.token])
                return
            self.stats.dropped += 1
        self._put(_ABANDON, names, [NO_ANSWER, NO_ANSWER_MS, claim.token])

    def delete_purged(self, purge: Purge) -> None:
        """Delete purged answers. This only frees memory: purged answers are never returned."""
        self._purges_due.append(purge)
        self._due.set()

    def _take(
        self,
        key: bytes,
        owner: Owner,
        data: bytes,
        ttl_ms: int,
        is_valid: Callable[[bytes], bool],
    ) -> Found | None:
        """Decode what Redis returned, if it is intact and may be used."""
        if data == NO_ANSWER:
            return None
        entry = decode_entry(key, owner.tenant, data)
        if entry is None or not is_valid(entry.body):
            self.stats.damaged += 1
            log.warning("an answer in the shared cache is damaged and is deleted")
            return None
        if ttl_ms <= 0 or self._purges.cover(entry.owner, entry.purge_id):
            return None
        return Found(entry, ttl_ms / 1e3)

    async def _ask(self, name: bytes, token: bytes) -> Any:
        """The script's result; None if it is late or Redis is unavailable."""
        if not self.available:
            self.stats.late += 1
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._store.run_script(
                    _FIND, [name, _lock_name(name)], [token, round(LOCK_S * 1e3)]
                )
        except TimeoutError:
            self.stats.late += 1
            self._late += 1
            if self._late >= LATE_TO_PAUSE:
                self._late = 0
                self._paused_until_s = time.monotonic() + PAUSE_S
            return None
        self._late = 0
        return answer

    def _put(self, script: Script, names: list[Any], arguments: list[Any]) -> None:
        self._queue.append((script, names, arguments))
        self._queue_bytes += len(arguments[0])
        self._due.set()

    async def _write(self) -> None:
        """Execute queued commands."""
        while True:
            await self._due.wait()
            self._due.clear()
            while self._queue:
                count = min(WRITES_AT_ONCE, len(self._queue))
                batch = [self._queue.popleft() for _ in range(count)]
                results = await asyncio.gather(
                    *(self._store.run_script(*command) for command in batch)
                )
                for (script, _, arguments), result in zip(batch, results, strict=True):
                    self._queue_bytes -= len(arguments[0])
                    if script is _SETTLE and result is not None:
                        self.stats.written += 1
                        self.stats.written_bytes += len(arguments[0])
                    elif result is None:
                        self.stats.dropped += 1
            while self._purges_due:
                await self._delete(self._purges_due.popleft())

    async def _renew(self) -> None:
        """Renew the locks of this worker's claims."""
        while True:
            await asyncio.sleep(RENEW_S)
            if self._claims and self._store.available:
                await asyncio.gather(
                    *(
                        self._store.run_script(
                            _RENEW, [claim.lock_name], [claim.token, round(LOCK_S * 1e3)]
                        )
                        for claim in list(self._claims)
                    )
                )

    async def _delete(self, purge: Purge) -> None:
        """Delete the answers that a purge covers; one of the workers does it."""
        mine = await self._store.run(
            "SET", PREFIX + b"purge:%d" % purge.id, self._token, "NX", "PX", 60_000
        )
        if not mine:
            return
        pattern = (
            PREFIX
            + b":".join(
                b"*" if name is None else _checksum(name)
                for name in (purge.deployment, purge.version, purge.tenant)
            )
            + b":{*"
        )
        cursor: Any = b"0"
        deleted = 0
        while True:
            page = await self._store.run("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS)
            if page is None:
                return
            cursor, names = page
            # Locks stay: their holders are generating new answers.
            names = [name for name in names if not name.endswith(b":lock")]
            if names:
                count = await self._store.run("UNLINK", *names)
                if count is None:
                    # A cluster, behind a proxy or of one node, accepts names of one slot only.

                    each = await asyncio.gather(*(self._store.run("UNLINK", n) for n in names))
                    count = sum(one or 0 for one in each)
                deleted += count
            if int(cursor) == 0:
                break
        log.info("purge %d deleted %d answers from the shared cache", purge.id, deleted)


def _entry_name(key: bytes, owner: Owner) -> bytes:
    return b"%b%b:%b:%b:{%b}" % (
        PREFIX,
        _checksum(owner.deployment),
        _checksum(owner.version),
        _checksum(owner.tenant),
        key.hex().encode(),
    )


def _lock_name(entry_name: bytes) -> bytes:
    return entry_name + b":lock"


def _checksum(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=NAME_BYTES).hexdigest().encode()
