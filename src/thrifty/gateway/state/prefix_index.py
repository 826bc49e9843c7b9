"""Which replica has computed which beginnings of prompts, by the gateway's own memory of what it
sent where.

A block's holders are the bits of one integer, so that a lookup walks a prompt's blocks once, for
any number of replicas. What a replica holds is bounded by what its cache can hold; the least
recently used blocks are taken for evicted, the ends of prompts before their beginnings, as engines
do it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

MAX_BLOCKS = 262_144
"""For all replicas of a deployment together: some 80 MB at the most."""
DEFAULT_BLOCKS = 2048
"""For a replica whose cache nobody told the size of: about 130,000 tokens."""
MIN_BLOCKS = 16
SHRINK, GROW = 0.9, 1.01


class _Holding:
    """What one replica is taken to hold."""

    __slots__ = ("blocks", "capacity", "computing", "most")

    def __init__(self) -> None:
        self.computing: set[int] = set()
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.capacity = float(DEFAULT_BLOCKS)
        self.most = float(DEFAULT_BLOCKS)


class PrefixIndex:
    """Blocks, and who holds them."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._held: dict[int, _Holding] = {}
        self._free: list[int] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._holders)

    def __contains__(self, slot: int) -> bool:
        return slot in self._held

    def join(self) -> int:
        """A number for a replica that has come, which holds nothing."""
        slot = self._free.pop() if self._free else self._next
        if slot == self._next:
            self._next += 1
        self._held[slot] = _Holding()
        return slot

    def leave(self, slot: int) -> None:
        """Forget a replica: it went away, or began anew with an empty cache."""
        held = self._held.pop(slot, None)
        if held is None:
            return
        for block in held.blocks:
            self._drop(block, slot)
        self._free.append(slot)

    def set_capacity(self, slot: int, blocks: float) -> None:
        """Say how much a replica's cache can hold."""
        held = self._held.get(slot)
        if held is not None and blocks != held.most:
            held.capacity = held.most = max(float(MIN_BLOCKS), blocks)

    def match(self, blocks: Sequence[int]) -> list[tuple[int, int]]:
        """Who holds how much of a prompt's beginning: (number of blocks, bits of the replicas whose
        match ends there), the longest first. Each replica is in one pair at most.
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
        """Note that a replica was sent a prompt with these blocks."""
        held = self._held.get(slot)
        if held is None:
            return
        bit, lru, holders = 1 << slot, held.blocks, self._holders
        # From the end to the beginning, so that ends are given up first.
        for block in reversed(blocks):
            if block in lru:
                lru.move_to_end(block)
            else:
                lru[block] = None
                holders[block] = holders.get(block, 0) | bit
        limit = min(held.capacity, MAX_BLOCKS / len(self._held))
        while len(lru) > limit:
            self._drop(lru.popitem(last=False)[0], slot)

    def begin(self, slot: int, blocks: Sequence[int]) -> None:
        """Note that a replica computes these blocks now; whoever shares them finds them later."""
        held = self._held.get(slot)
        if held is not None:
            held.computing.update(blocks)

    def finish(self, slot: int, blocks: Sequence[int]) -> None:
        """Note that it has computed them."""
        held = self._held.get(slot)
        if held is not None:
            held.computing.difference_update(blocks)

    def is_computing(self, slot: int, block: int) -> bool:
        """Whether a replica is about to have this block, and has it not yet."""
        held = self._held.get(slot)
        return held is not None and block in held.computing

    def correct(self, slot: int, expected: float, actual: float) -> None:
        """Learn from what an engine found cached: one that holds less than was expected has a
        smaller cache, or shares it with others.
        """
        held = self._held.get(slot)
        if held is None or expected <= 0:
            return
        if actual < 0.5 * expected:
            held.capacity = max(float(MIN_BLOCKS), min(held.capacity, len(held.blocks)) * SHRINK)
        elif held.capacity < held.most:
            held.capacity = min(held.most, held.capacity * GROW)

    def _drop(self, block: int, slot: int) -> None:
        left = self._holders.get(block, 0) & ~(1 << slot)
        if left:
            self._holders[block] = left
        else:
            self._holders.pop(block, None)
