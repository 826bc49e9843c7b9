"""Domains: the uses that a model is evaluated on, each with data of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from thrifty.evaluate.conversations import holds_conversations, read_conversations
from thrifty.evaluate.windows import TokenWindow, count_all, read_windows
from thrifty.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Domain:
    """One use of a model: plain text, or conversations in which the assistant's tokens count."""

    name: str
    path: Path
    """A text, or lines of JSON with `text` or with `messages` (and `tools`)."""


def read_domain(
    path: Path, tokenizer: TextTokenizer, length: int, limit: int | None = None
) -> Iterator[TokenWindow]:
    """Yield windows of at most `length` tokens, at most `limit` tokens in total. Raises
    `EvaluationError`.
    """
    if holds_conversations(path):
        yield from read_conversations(path, tokenizer, length, limit)
    else:
        yield from map(count_all, read_windows(path, tokenizer, length, limit))
