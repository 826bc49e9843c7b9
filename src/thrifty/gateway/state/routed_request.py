"""What routing needs to know of a request: how much work it is, and how it begins.

The gateway has no tokenizer, so tokens are estimated from bytes, with a ratio learned from the
usage that engines report. A prompt's beginning is a chain of hashes, one for each block of bytes:
two requests share as many blocks as their tools and conversations have in common from the start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

BLOCK_BYTES = 256
"""Some 64 tokens of English: fine enough for the blocks of 16 to 64 tokens that engines cache."""
MAX_BLOCKS = 512
"""Beginnings longer than 128 KB are told apart no further."""
AFFINITY_BYTES = 1024

_encode = msgspec.json.Encoder().encode


class RoutedRequest:
    """One request, to a routing policy."""

    __slots__ = ("affinity", "blocks", "decode_tokens", "levels", "prompt_tokens", "unsure")

    def __init__(
        self,
        prompt_tokens: float = 0.0,
        decode_tokens: float = 0.0,
        blocks: Sequence[int] = (),
        affinity: int = 0,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        """Estimated."""
        self.decode_tokens = decode_tokens
        """Expected: the usual length of an answer, within the request's own bound."""
        self.blocks = blocks
        """Chained hashes of the prompt's whole blocks; empty where nothing is shared."""
        self.affinity = affinity
        """Stable across processes: of the session, or of how the prompt begins."""
        self.levels: Sequence[tuple[int, int]] = ()
        """Who has computed how much of its prompt, as `PrefixIndex.match` tells it."""
        self.unsure = False
        """Whether what it shares was still being computed when it was sent."""

    def cached_blocks(self, slot: int) -> int:
        """How many of its blocks the replica with that number is taken to have cached."""
        for depth, mask in self.levels:
            if mask >> slot & 1:
                return depth
        return 0

    def cached_tokens(self, slot: int) -> float:
        """The same in tokens."""
        blocks = self.cached_blocks(slot)
        return blocks * self.prompt_tokens / len(self.blocks) if blocks else 0.0


def read_prompt(body: Mapping[str, Any]) -> bytes:
    """Everything of a request's body that becomes its prompt, in the order in which templates put
    it: tools, then the conversation. Bytes that differ mean prompts that differ.
    """
    messages = body.get("messages")
    if messages is not None:
        tools = body.get("tools")
        parts = [_encode(tools)] if tools else []
        parts += [_encode(message) for message in messages]
        return b"\x1e".join(parts)
    prompt = body.get("prompt")
    if prompt is None:
        prompt = body.get("input")
    return prompt.encode() if isinstance(prompt, str) else _encode(prompt)


def hash_blocks(prompt: bytes, salt: int = 0) -> list[int]:
    """One number for each whole block of `prompt`, which stands for all up to its end too. They
    hold within this process.
    """
    chain, blocks = salt, []
    for start in range(
        0, min(len(prompt), MAX_BLOCKS * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES
    ):
        chain = hash((chain, prompt[start : start + BLOCK_BYTES]))
        blocks.append(chain)
    return blocks


def hash_affinity(text: bytes) -> int:
    """A number that every worker and every run gives to `text`."""
    return int.from_bytes(hashlib.blake2b(text[:AFFINITY_BYTES], digest_size=8).digest())


def hash_conversation(body: Mapping[str, Any], session: str) -> int:
    """A number that stays the same as a conversation grows: of its session, or of its beginning up
    to the first answer.
    """
    if session:
        return hash_affinity(session.encode())
    messages = body.get("messages")
    if not messages:
        return hash_affinity(read_prompt(body))
    opening = []
    for message in messages:
        if isinstance(message, dict) and message.get("role") == "assistant":
            break
        opening.append(_encode(message))
    return int.from_bytes(hashlib.blake2b(b"\x1e".join(opening), digest_size=8).digest())
