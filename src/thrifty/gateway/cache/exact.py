"""The exact response cache of one process: whole answers, bounded in bytes and in age.

An entry holds the JSON of a non-streamed answer, however it was requested, and can be returned
whole or as a stream. Its id is cut out, so that each hit is returned under its own response id.

Answers of one deployment, version and tenant form a group, which can be invalidated at once: the
group is marked, its entries are no longer returned, and its memory is freed in pieces.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from thrifty.gateway.cache.replay import ID_MARK, cut_id, make_chunks
from thrifty.openai.events import DONE, Usage
from thrifty.openai.stream_options import StreamOptions, pad_events

ENTRY_BYTES = 800
"""Size of an entry beside its answer: keys, objects, positions in the LRU order and the group."""
FREE_AT_ONCE = 1000
"""Entries of invalidated groups are freed in pieces of this many, about a millisecond each."""


class Owner(NamedTuple):
    """The deployment, revision, version and tenant that an answer belongs to."""

    deployment: str = ""
    revision: str = ""
    version: str = ""
    tenant: str = ""


class Entry:
    """One cached answer, with how it was generated."""

    __slots__ = (
        "_body",
        "_lines",
        "_parts",
        "_prefix",
        "_streams",
        "expires_s",
        "group",
        "owner",
        "purge_id",
        "replica",
        "size_bytes",
        "took_s",
        "usage",
    )

    def __init__(
        self,
        body: bytes,
        *,
        replica: str,
        usage: Usage | None,
        owner: Owner,
        took_s: float = 0.0,
        purge_id: int = 0,
    ) -> None:
        """`body` is the whole answer, `took_s` its generation time, and `purge_id` the newest purge
        known when the generation began. Data needed only for hits is built on the first hit.
        """
        self._body = body
        self._prefix = b""
        self._parts: list[bytes] | None = None
        self._streams: dict[tuple[bool, bool], list[bytes]] | None = None
        self._lines: bytes | None = None
        self.replica = replica
        self.usage = usage
        self.owner = owner
        self.took_s = took_s
        self.purge_id = purge_id
        self.expires_s = 0.0
        self.group: _Group | None = None
        self.size_bytes = ENTRY_BYTES + 2 * len(body)
        """The size counted for it, including a stream that may be built from it."""

    @property
    def version(self) -> str:
        """The label of the version that generated it."""
        return self.owner.version

    @property
    def body(self) -> bytes:
        """The whole answer, under its original id or a placeholder."""
        if self._parts is None:
            return self._body
        return (b"%b-0" % self._prefix if self._prefix else b"").join(self._parts)

    @property
    def lines(self) -> bytes:
        """The header lines that every hit carries."""
        if self._lines is None:
            self._lines = b"x-thrifty-cache: hit\r\n"
            if self.replica:
                self._lines += b"x-thrifty-replica: %b\r\n" % self.replica.encode()
            if self.owner.version:
                self._lines += b"x-thrifty-version: %b\r\n" % self.owner.version.encode()
        return self._lines

    def as_body(self, response_id: str) -> bytes:
        """The whole answer under the given response id."""
        parts = self._parts or self._cut()
        return self._name(response_id).join(parts)

    def as_stream(self, options: StreamOptions, response_id: str) -> bytes:
        """The answer as a stream under the given response id."""
        if self._parts is None:
            self._cut()
        if self._streams is None:
            self._streams = {}
        kind = (options.usage, options.continuous)
        pieces = self._streams.get(kind)
        if pieces is None:
            chunks = make_chunks(msgspec.json.decode(self.body), options)
            pieces = self._streams[kind] = b"".join([*chunks, DONE]).split(ID_MARK)
        stream = self._name(response_id).join(pieces)
        return pad_events(stream) if options.obfuscate else stream

    def _cut(self) -> list[bytes]:
        self._prefix, parts = cut_id(self._body)
        self._parts, self._body = parts, b""
        return parts

    def _name(self, response_id: str) -> bytes:
        return b"%b-%b" % (self._prefix, response_id.encode()) if self._prefix else b""


class _Group:
    """Entries that are invalidated together."""

    __slots__ = ("invalidated", "keys", "size_bytes")

    def __init__(self) -> None:
        self.keys: dict[bytes, None] = {}
        self.size_bytes = 0
        self.invalidated = False


class ExactCache:
    """Answers by key; the least recently used are evicted first."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._groups: dict[Owner, _Group] = {}
        self._invalidated: list[_Group] = []
        self._invalidated_count = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries) - self._invalidated_count

    def get(self, key: bytes) -> Entry | None:
        """The answer for `key`, unless it has expired or was invalidated."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        assert entry.group is not None
        if entry.group.invalidated or entry.expires_s < self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: Entry, ttl_s: float) -> None:
        """Store an answer. One larger than a quarter of the cache is not stored."""
        size_bytes = entry.size_bytes
        if size_bytes > self._max_bytes // 4:
            return
        if key in self._entries:
            self._drop(key)
        entry.expires_s = self._clock() + ttl_s
        group = self._groups.get(entry.owner)
        if group is None:
            group = self._groups[entry.owner] = _Group()
        entry.group = group
        group.keys[key] = None
        group.size_bytes += size_bytes
        self._entries[key] = entry
        self.size_bytes += size_bytes
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def invalidate(self, chosen: Callable[[Owner], bool]) -> int:
        """Invalidate the answers of chosen owners; returns how many. `free` releases the memory."""
        count = 0
        for owner in [owner for owner in self._groups if chosen(owner)]:
            group = self._groups.pop(owner)
            group.invalidated = True
            count += len(group.keys)
            self.size_bytes -= group.size_bytes
            self._invalidated.append(group)
        self._invalidated_count += count
        return count

    def free(self) -> bool:
        """Free a piece of the invalidated entries; returns whether there are more."""
        left = FREE_AT_ONCE
        while self._invalidated and left > 0:
            group = self._invalidated[-1]
            while group.keys and left > 0:
                self._drop(next(reversed(group.keys)))
                left -= 1
            if not group.keys:
                self._invalidated.pop()
        return bool(self._invalidated)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Entries and bytes by deployment."""
        found: dict[str, tuple[int, int]] = {}
        for owner, group in self._groups.items():
            count, size_bytes = found.get(owner.deployment, (0, 0))
            found[owner.deployment] = (count + len(group.keys), size_bytes + group.size_bytes)
        return found

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        group = entry.group
        assert group is not None
        del group.keys[key]
        if group.invalidated:
            self._invalidated_count -= 1
            return
        group.size_bytes -= entry.size_bytes
        self.size_bytes -= entry.size_bytes
        if not group.keys:
            del self._groups[entry.owner]
