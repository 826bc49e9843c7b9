"""An index of which replica has computed which prompt prefixes, from the requests that the gateway
sent.

The holders of a block are the bits of one integer, so a lookup walks the prompt's blocks once for
any number of replicas. A replica's entry is bounded by the capacity of its cache. The least
recently used blocks are assumed to be evicted, with ends of prompts before their beginnings, as
engines do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

MAX_BLOCKS = 262_144
"""For all replicas of a version together: about 80 MB at most."""
DEFAULT_BLOCKS = 2048
"""For a replica whose cache size is unknown: about 130,000 tokens."""
MIN_BLOCKS = 16
SHRINK, GROW = 0.9, 1.01


class _ReplicaBlocks:
    """The blocks that one replica is assumed to hold."""

    __slots__ = ("blocks", "capacity", "computing", "max_capacity")

    def __init__(self) -> None:
        self.computing: set[int] = set()
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.capacity = float(DEFAULT_BLOCKS)
        self.max_capacity = float(DEFAULT_BLOCKS)


class PrefixIndex:
    """Prompt blocks and the replicas that hold them."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._replicas: dict[int, _ReplicaBlocks] = {}
        self._free: list[int] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._holders)

    def __contains__(self, slot: int) -> bool:
        return slot in self._replicas

    def join(self) -> int:
        """Register a new replica with an empty cache; returns its slot number."""
        slot = self._free.pop() if self._free else self._next
        if slot == self._next:
            self._next += 1
        self._replicas[slot] = _ReplicaBlocks()
        return slot

    def leave(self, slot: int) -> None:
        """Remove a replica that is gone or was restarted with an empty cache."""
        cached = self._replicas.pop(slot, None)
        if cached is None:
            return
        for block in cached.blocks:
            self._drop(block, slot)
        self._free.append(slot)

    def set_capacity(self, slot: int, blocks: float) -> None:
        """Set how many blocks a replica's cache can hold."""
        cached = self._replicas.get(slot)
        if cached is not None and blocks != cached.max_capacity:
            cached.capacity = cached.max_capacity = max(float(MIN_BLOCKS), blocks)

    def match(self, blocks: Sequence[int]) -> list[tuple[int, int]]:
        """The longest prefixes that replicas hold: pairs of (number of blocks, bits of the replicas
        whose match ends there), longest first. Each replica is in at most one pair.
        """
        levels: list[tuple[int, int]] = []
        get = self._holders.get
        depth, mask = 0, -1
        for block in blocks:
            here = get(block, 0) & mask
            if here != mask:
                if depth:
                    levels.append((depth, mask & ~here))
                if not here:
                    mask = 0
                    break
                mask = here
            depth += 1
        if depth and mask > 0:
            levels.append((depth, mask))
        levels.reverse()
        return levels

    def add(self, slot: int, blocks: Sequence[int]) -> None:
        """Record that a prompt with these blocks was sent to a replica."""
        cached = self._replicas.get(slot)
        if cached is None:
            return
        bit, lru, holders = 1 << slot, cached.blocks, self._holders
        # In reverse order, so that ends of prompts are evicted first.
        for block in reversed(blocks):
            if block in lru:
                lru.move_to_end(block)
            else:
                lru[block] = None
                holders[block] = holders.get(block, 0) | bit
        limit = min(cached.capacity, MAX_BLOCKS / len(self._replicas))
        while len(lru) > limit:
            self._drop(lru.popitem(last=False)[0], slot)

    def begin(self, slot: int, blocks: Sequence[int]) -> None:
        """Mark blocks as being computed; later requests that share them may find them cached."""
        cached = self._replicas.get(slot)
        if cached is not None:
            cached.computing.update(blocks)

    def finish(self, slot: int, blocks: Sequence[int]) -> None:
        """Mark blocks as computed."""
        cached = self._replicas.get(slot)
        if cached is not None:
            cached.computing.difference_update(blocks)

    def is_computing(self, slot: int, block: int) -> bool:
        """Whether a replica is still computing this block."""
        cached = self._replicas.get(slot)
        return cached is not None and block in cached.computing

    def correct(self, slot: int, expected: float, actual: float) -> None:
        """Adjust a replica's capacity to what its engine found cached. A result below the
        expectation means a smaller cache, or one shared with others.
        """
        cached = self._replicas.get(slot)
        if cached is None or expected <= 0:
            return
        if actual < 0.5 * expected:
            cached.capacity = max(
                float(MIN_BLOCKS), min(cached.capacity, len(cached.blocks)) * SHRINK
            )
        elif cached.capacity < cached.max_capacity:
            cached.capacity = min(cached.max_capacity, cached.capacity * GROW)

    def _drop(self, block: int, slot: int) -> None:
        left = self._holders.get(block, 0) & ~(1 << slot)
        if left:
            self._holders[block] = left
        else:
            self._holders.pop(block, None)
