"""The interface of an encoder in an evaluation: it computes one vector for each text.

There is one module for each kind: `openvino_embedder`, `torch_embedder`, `served_embedder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from thrifty.text.tokenizer import TextTokenizer

Vectors = npt.NDArray[np.float32]

BATCH_TOKENS = 8192
"""Tokens in a batch, padding included."""


class Embedder(Protocol):
    """An encoder that can be evaluated. Not thread-safe."""

    label: str
    """The name in reports."""
    identity: str
    """Equal for models that compute the same vectors."""
    width: int
    context_length: int

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the model's server."""
        ...

    def embed(self, texts: Sequence[list[int]]) -> Vectors:
        """One vector for each list of tokens: [texts, width]."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def encode_text(tokenizer: TextTokenizer, text: str, most: int) -> list[int]:
    """The tokens of a text, at most `most`.

    Truncation removes the end of the text, but keeps the token that the tokenizer appends.
    """
    tokens = tokenizer.encode(text)
    if len(tokens) <= most:
        return tokens
    end = tokens[-1:] if len(tokenizer.encode("")) > 1 else []
    return tokens[: most - len(end)] + end


def embed_in_batches(
    texts: Sequence[list[int]],
    width: int,
    run: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Vectors],
) -> Vectors:
    """Batch texts of similar length: `run(ids, mask)`, both [batch, tokens], returns [batch,
    width].
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    found = np.zeros((len(texts), width), np.float32)
    while order:
        count = 1
        while count < len(order) and (count + 1) * len(texts[order[count]]) <= BATCH_TOKENS:
            count += 1
        batch, order = order[:count], order[count:]
        ids = np.zeros((count, len(texts[batch[-1]])), np.int64)
        mask = np.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, : len(texts[index])] = texts[index]
            mask[row, : len(texts[index])] = 1
        found[batch] = run(ids, mask)
    return found
