"""Domains: the uses that a model is evaluated on, each with data of its own.

The worst domain stands for the model: what is served on all of them is as good as on that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def find_worst(ratios: Mapping[str, float]) -> str | None:
    """The name of the domain with the highest perplexity relative to the reference's."""
    return max(ratios, key=lambda name: ratios[name], default=None)
