"""The interface of a decoder in an evaluation: it computes log-probabilities of tokens.

There is one module for each kind: `openvino_scorer`, `torch_scorer`, `served_scorer`.
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
class TopTokens:
    """The likeliest next tokens in a window of T tokens: T - 1 predictions."""

    ids: TokenArray
    """The k likeliest next tokens, likeliest first, [T - 1, k]."""
    logprobs: Logprobs
    """Their log-probabilities, [T - 1, k]."""
    target: Logprobs
    """The log-probability of the token that follows, [T - 1]."""
    full: Logprobs
    """The whole vocabulary's log-probabilities for the requested rows, [rows, vocabulary]."""


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of given tokens in a window of T tokens."""

    logprobs: Logprobs
    """Of the requested ids, [T - 1, ids]."""
    top: TokenArray
    """The likeliest next token, [T - 1]."""
    full: Logprobs = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """The whole vocabulary's log-probabilities for the requested rows, [rows, vocabulary]."""


class Ranker(Protocol):
    """A model whose likeliest tokens are recorded, as a reference or a teacher. Not thread-safe."""

    label: str
    """The name in reports."""
    identity: str
    """Equal for models that compute the same log-probabilities."""
    tokenizer: TextTokenizer
    vocab_size: int
    context_length: int

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        """The k likeliest tokens after each of `tokens` except the last."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class Scorer(Ranker, Protocol):
    """A model that can be evaluated."""

    def score(self, tokens: TokenArray, ids: TokenArray, rows: Sequence[int] = ()) -> TokenScores:
        """Log-probabilities of `ids` [T - 1, any] after each of `tokens` except the last."""
        ...

    def generate(self, tokens: TokenArray, most: int) -> Iterator[int]:
        """Decode greedily, at most `most` tokens; stops at the model's end-of-text token."""
        ...
