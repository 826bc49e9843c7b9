"""Domains: the uses that a model is evaluated on, each with data of its own.

The worst domain stands for the model: what is served on all of them is as good as on that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import EvaluationError
from thrifty.evaluate.conversations import holds_conversations, read_conversations
from thrifty.evaluate.embeddings import holds_pairs
from thrifty.evaluate.windows import TokenWindow, count_all, read_windows
from thrifty.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Domain:
    """One use of a model: plain text, or conversations in which the assistant's tokens count; for
    encoders texts, or pairs of texts.
    """

    name: str
    path: Path
    """A text, or lines of JSON with `text`, with `messages` (and `tools`), or with `texts`."""


def read_domain(
    path: Path, tokenizer: TextTokenizer, length: int, limit: int | None = None
) -> Iterator[TokenWindow]:
    """Yield windows of at most `length` tokens, at most `limit` tokens in total. Raises
    `EvaluationError`.
    """
    if holds_pairs(path):
        raise EvaluationError(f"{path} holds pairs of texts, which are for encoders")
    if holds_conversations(path):
        yield from read_conversations(path, tokenizer, length, limit)
    else:
        yield from map(count_all, read_windows(path, tokenizer, length, limit))


def find_worst(distances: Mapping[str, float]) -> str | None:
    """The name of the domain on which a model is furthest from its reference."""
    return max(distances, key=lambda name: distances[name], default=None)


def find_distance(values: Mapping[str, Any]) -> float | None:
    """How far a model is from its reference by what was measured on a domain: its perplexity
    relative to the reference's, or what the rank correlation of an encoder lacks to 1.
    """
    if "perplexity_ratio" in values:
        return float(values["perplexity_ratio"])
    ranks = values.get("rank_correlation")
    return None if ranks is None else 1 - float(ranks["spearman"])


def find_worst_of(domains: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The name of the worst domain, by what was measured on each."""
    found = {name: find_distance(values) for name, values in domains.items()}
    return find_worst({name: one for name, one in found.items() if one is not None})
