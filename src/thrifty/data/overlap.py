"""Sequences of words, by which it is found that two texts share parts.

Of conversations, what users and assistants say is compared: system messages and tools are the same
in many.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SEQUENCE_WORDS = 13
"""This many consecutive words in both texts count as overlap, as is usual in the field."""
SHORTEST_WORDS = 5
"""A text shorter than that is not compared: it recurs by chance."""
_SPEAKERS = ("user", "assistant")
_WORD = re.compile(r"\w+")


def list_words(text: str) -> list[str]:
    """The words of a text, whatever their case and the marks between them."""
    return _WORD.findall(text.lower())


def hash_sequences(words: Sequence[str], size: int = SEQUENCE_WORDS) -> Iterator[bytes]:
    """A checksum of each sequence of `size` words."""
    for start in range(len(words) - size + 1):
        joined = " ".join(words[start : start + size])
        yield hashlib.blake2b(joined.encode(errors="replace"), digest_size=8).digest()


def list_sequences(record: Mapping[str, Any]) -> Iterator[bytes]:
    """Checksums of the sequences in a record of `text` (or `content`, or `passage`), of `texts`, or
    of `messages`. A short text is one sequence.
    """
    for text in _list_texts(record):
        words = list_words(text)
        short = SHORTEST_WORDS <= len(words) < SEQUENCE_WORDS
        yield from hash_sequences(words, len(words) if short else SEQUENCE_WORDS)


def _list_texts(record: Mapping[str, Any]) -> list[str]:
    messages = record.get("messages")
    if isinstance(record.get("texts"), list):
        return [str(one) for one in record["texts"]]
    if not isinstance(messages, list):
        return [str(record[name]) for name in ("text", "content", "passage") if name in record][:1]
    said = [one for one in messages if isinstance(one, dict) and one.get("role") in _SPEAKERS]
    return [one["content"] for one in said if isinstance(one.get("content"), str)]
