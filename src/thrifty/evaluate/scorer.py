"""What a model is to an evaluation: something that gives log-probabilities of tokens.

One file for each form that a model takes: `openvino_scorer`, `torch_scorer`, `served_scorer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from thrifty.evaluate.windows import TokenArray
from thrifty.text.tokenizer import TextTokenizer

Logprobs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ranked:
    """A reference's account of one window of T tokens: T - 1 predictions."""

    ids: TokenArray
    """The k likeliest next tokens, likeliest first: [T - 1, k]."""
    logprobs: Logprobs
    """Theirs: [T - 1, k]."""
    target: Logprobs
    """Of the token that does come: [T - 1]."""
    full: Logprobs
    """Of the whole vocabulary, for the rows asked for: [rows, vocabulary]."""


@dataclass(frozen=True)
class Scored:
    """A candidate's account of one window."""

    logprobs: Logprobs
    """Of the ids asked for: [T - 1, ids]."""
    top: TokenArray
    """The likeliest next token: [T - 1]."""
    full: Logprobs = field(default_factory=lambda: np.zeros((0, 0), np.float32))


class Scorer(Protocol):
    """A model that can be evaluated. Not thread-safe."""

    label: str
    """What reports call it."""
    identity: str
    """Equal for what gives the same log-probabilities."""
    tokenizer: TextTokenizer
    vocab_size: int
    context_length: int

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> Ranked:
        """The k likeliest tokens behind each of `tokens` but the last."""
        ...

    def score(self, tokens: TokenArray, ids: TokenArray, rows: Sequence[int] = ()) -> Scored:
        """Log-probabilities of `ids` ([T - 1, any]) behind each of `tokens` but the last."""
        ...

    def generate(self, tokens: TokenArray, most: int) -> Iterator[int]:
        """The likeliest next token, again and again, at most `most` times; ends at the model's end."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
