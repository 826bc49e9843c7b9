"""How much of a prompt the engine's prefix cache holds, which the engine itself does not tell.

OpenVINO GenAI keeps the KV cache of computed blocks of tokens and finds them again by a checksum
over everything up to the block's end, those of sequences that run as well. This index keeps the same
account: blocks in use, by how many; blocks that nobody uses, the least recently used of which are
given up first when the pool is full; and what running sequences have for themselves alone.
"""

from __future__ import annotations

from collections import OrderedDict

BLOCK_TOKENS = 32
"""Tokens in a block of the KV cache on CPUs."""


class PrefixCacheModel:
    """An account of the prefix cache. Not thread-safe; all calls are made by the worker."""

    def __init__(self, capacity_blocks: int, *, sharing: bool = True) -> None:
        """With `sharing` off nothing is ever found again; only the room is accounted for."""
        self._capacity = capacity_blocks
        self._sharing = sharing
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._used: dict[int, int] = {}
        self._running_blocks = 0

    def match(self, tokens: list[int]) -> int:
        """How many tokens at the start of a prompt are cached. The last token never counts: the
        engine computes it anew, to have something to sample from.
        """
        count = 0
        for checksum in self._chain(tokens):
            if checksum not in self._used and checksum not in self._unused:
                break
            count += BLOCK_TOKENS
        return max(0, min(count, len(tokens) - 1))

    def has_room(self, tokens: list[int], more: int) -> bool:
        """Whether a sequence that begins with `tokens` and takes `more` blocks beyond them fits beside
        those that run.
        """
        needed = -(-len(tokens) // BLOCK_TOKENS) + more
        for checksum in self._chain(tokens):
            if checksum not in self._used:
                break
            needed -= 1
        return needed <= self.free_blocks

    @property
    def free_blocks(self) -> int:
        """Blocks that no running sequence has."""
        return self._capacity - len(self._used) - self._running_blocks

    def begin(self, tokens: list[int]) -> list[int]:
        """A sequence begins: its cached blocks are in use, its others are taken from the pool."""
        held = []
        for checksum in self._chain(tokens):
            if checksum in self._unused:
                del self._unused[checksum]
            elif checksum not in self._used:
                break
            self._used[checksum] = self._used.get(checksum, 0) + 1
            held.append(checksum)
        self._running_blocks += -(-len(tokens) // BLOCK_TOKENS) - len(held)
        self._evict()
        return held

    def share(self, tokens: list[int], held: list[int]) -> int:
        """A running prompt is computed: others may use its whole blocks from now on. Those join `held`;
        returns how many of the sequence's own they were. What another has computed too stays its own.
        """
        shared = 0
        for checksum in self._chain(tokens)[len(held) :]:
            if checksum not in self._used:
                self._unused.pop(checksum, None)
                self._used[checksum] = 1
                held.append(checksum)
                shared += 1
        self._running_blocks -= shared
        return shared

    def grow(self, blocks: int) -> None:
        """Running sequences took `blocks` more."""
        self._running_blocks += blocks
        self._evict()

    def end(self, held: list[int], tokens: list[int], blocks: int) -> None:
        """A sequence ended with `tokens` in the cache, of which `held` were shared; `blocks` of
        its own go back to the pool with what is in them.
        """
        self._running_blocks -= blocks
        for checksum in held:
            left = self._used[checksum] - 1
            if left:
                self._used[checksum] = left
            else:
                del self._used[checksum]
                self._unused[checksum] = None
        # A block that is not full takes room too, until it is its turn to be given up.
        for checksum in self._chain(tokens, with_rest=True):
            if checksum not in self._used:
                self._unused[checksum] = None
                self._unused.move_to_end(checksum)
        self._evict()

    def _chain(self, tokens: list[int], *, with_rest: bool = False) -> list[int]:
        return _chain(tokens, with_rest=with_rest) if self._sharing else []

    def _evict(self) -> None:
        while self._unused and (
            len(self._unused) + len(self._used) + self._running_blocks > self._capacity
        ):
            self._unused.popitem(last=False)


def _chain(tokens: list[int], *, with_rest: bool = False) -> list[int]:
    """A checksum for each whole block, over everything up to its end; `with_rest`, for the last
    one too if it is not full.
    """
    checksums = []
    checksum = 0
    end = len(tokens) if with_rest else len(tokens) - BLOCK_TOKENS + 1
    for start in range(0, end, BLOCK_TOKENS):
        checksum = hash((checksum, *tokens[start : start + BLOCK_TOKENS]))
        checksums.append(checksum)
    return checksums
