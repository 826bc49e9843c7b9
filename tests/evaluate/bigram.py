"""A model whose next token depends only on the last one: small enough to check by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thrifty.engines.echo.backend import make_tokenizer
from thrifty.evaluate.scorer import TokenScores, TopTokens
from thrifty.evaluate.windows import TokenArray

VOCAB = 300


class Bigram:
    """Log-probabilities from a table [last token, next token]. Counts its forward passes."""

    def __init__(self, seed: int, noise: float = 0.0, label: str = "bigram") -> None:
        table = np.random.default_rng(7).normal(0, 3, (VOCAB, VOCAB))
        if noise:
            table = table + np.random.default_rng(seed).normal(0, noise, table.shape)
        table -= np.log(np.exp(table).sum(axis=1, keepdims=True))
        self.table: npt.NDArray[np.float64] = table
        self.label = label
        self.identity = f"{label}-{seed}-{noise}"
        self.tokenizer = make_tokenizer()
        self.vocab_size = VOCAB
        self.context_length = 4096
        self.passes = 0

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        rows_of = self._look_up(tokens)
        ids = np.argsort(-rows_of, axis=1, kind="stable")[:, :k]
        target = np.take_along_axis(rows_of, tokens[1:, None], 1)[:, 0]
        return TopTokens(
            ids, np.take_along_axis(rows_of, ids, 1), target, rows_of[list(rows)]
        )  # fmt: skip

    def score(self, tokens: TokenArray, ids: TokenArray, rows: Sequence[int] = ()) -> TokenScores:
        rows_of = self._look_up(tokens)
        return TokenScores(
            np.take_along_axis(rows_of, ids, 1), rows_of.argmax(axis=1), rows_of[list(rows)]
        )

    def generate(self, tokens: TokenArray, most: int) -> Iterator[int]:
        last = int(tokens[-1])
        for _ in range(most):
            last = int(self.table[last].argmax())
            yield last

    def close(self) -> None: ...

    def _look_up(self, tokens: TokenArray) -> npt.NDArray[np.float32]:
        self.passes += 1
        return self.table[tokens[:-1]].astype(np.float32)


def divergence(reference: Bigram, candidate: Bigram, tokens: TokenArray) -> npt.NDArray[np.float64]:
    """The divergence over the whole vocabulary, after each token except the last."""
    p, q = reference.table[tokens[:-1]], candidate.table[tokens[:-1]]
    found: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return found


def write_text(path: Path, characters: int, seed: int = 1) -> Path:
    """Write text of that many characters, each of which is a token."""
    letters = np.random.default_rng(seed).integers(97, 123, characters).astype(np.uint8).tobytes()
    path.write_bytes(b"\n".join(letters[i : i + 79] for i in range(0, characters, 79)))
    return path
