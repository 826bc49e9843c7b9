"""The properties of a request that routing uses: its amount of work and its prompt prefix.

The gateway has no tokenizer. It estimates tokens from bytes, with a ratio learned from the usage
that engines report. A prefix is a chain of hashes, one per block of bytes: two requests share as
many blocks as their tools and conversations have in common from the start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

BLOCK_BYTES = 256
"""About 64 tokens of English; engines cache blocks of 16 to 64 tokens."""
MAX_BLOCKS = 512
"""Prompts that differ only after the first 128 KB count as equal."""
AFFINITY_BYTES = 1024

_encode = msgspec.json.Encoder().encode


class RoutedRequest:
    """One request as seen by a routing policy."""

    __slots__ = ("affinity", "blocks", "decode_tokens", "levels", "prompt_tokens", "unsure")

    def __init__(
        self,
        prompt_tokens: float = 0.0,
        decode_tokens: float = 0.0,
        blocks: Sequence[int] = (),
        affinity: int = 0,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        """Estimated tokens of the prompt."""
        self.decode_tokens = decode_tokens
        """Expected tokens of the answer: the usual length, within the request's own bound."""
        self.blocks = blocks
        """Chained hashes of the prompt's whole blocks; empty if prefixes are not used."""
        self.affinity = affinity
        """A hash of the session or of the prompt's beginning, the same in every process."""
        self.levels: Sequence[tuple[int, int]] = ()
        """The prefixes that replicas hold, as returned by `PrefixIndex.match`."""
        self.unsure = False
        """Whether the shared prefix was still being computed when the request was sent."""

    def cached_blocks(self, slot: int) -> int:
        """How many of its blocks a replica is assumed to have cached."""
        for depth, mask in self.levels:
            if mask >> slot & 1:
                return depth
        return 0

    def cached_tokens(self, slot: int) -> float:
        """How many tokens of its prompt a replica is assumed to have cached."""
        blocks = self.cached_blocks(slot)
        return blocks * self.prompt_tokens / len(self.blocks) if blocks else 0.0


def read_prompt(body: Mapping[str, Any]) -> bytes:
    """The parts of a request's body that form its prompt, in the order that templates use:
    tools, then the conversation. Different bytes mean different prompts.
    """
    messages = body.get("messages")
    if messages is not None:
        tools = body.get("tools")
        parts = [_encode(tools)] if tools else []
        parts += [_encode(message) for message in messages]
        return b"\x1e".join(parts)
    prompt = body.get("prompt")
    if prompt is None:
        prompt = body.get("input") or [body.get("query"), body.get("documents")]
    return prompt.encode() if isinstance(prompt, str) else _encode(prompt)


def hash_blocks(prompt: bytes, salt: int = 0) -> list[int]:
    """One chained hash per whole block of `prompt`, each covering everything up to the block's
    end. The hashes are valid in this process only.
    """
    chain, blocks = salt, []
    for start in range(
        0, min(len(prompt), MAX_BLOCKS * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES
    ):
        chain = hash((chain, prompt[start : start + BLOCK_BYTES]))
        blocks.append(chain)
    return blocks


def hash_affinity(text: bytes) -> int:
    """A hash of the beginning of `text`, the same in every worker and every run."""
    return int.from_bytes(hashlib.blake2b(text[:AFFINITY_BYTES], digest_size=8).digest())


def hash_conversation(body: Mapping[str, Any], session: str) -> int:
    """A hash that stays the same as a conversation grows: of its session, or of its messages up
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
