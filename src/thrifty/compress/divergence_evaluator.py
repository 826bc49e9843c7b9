"""The divergence of a modified decoder from the original, while it is being compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.evaluate.divergence import coarse_divergence
from thrifty.evaluate.narrowed import FoldedReference, NarrowedVocabulary
from thrifty.evaluate.openvino_scorer import OpenVinoScorer
from thrifty.evaluate.scorer import Ranker
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.decoder import build_decoder
from thrifty.graphs.weights import Weights
from thrifty.text.tokenizer import TextTokenizer

TOP_K = 64


@dataclass(frozen=True)
class RecipeResult:
    """The result of a recipe, on text that it was not made from."""

    recipe: str
    bits_per_weight: float
    kl_divergence: float


@dataclass(frozen=True)
class Difference:
    """How a modified model compares with the original, in nats per token of the original."""

    kl_divergence: float
    loss: float
    """By how much the log-probability of the text falls: the logarithm of the perplexity ratio."""


class DivergenceEvaluator:
    """Records the float model's predictions on some windows, and compares other models with
    them.
    """

    def __init__(
        self,
        checkpoint: DecoderCheckpoint,
        tokenizer: TextTokenizer,
        windows: Sequence[TokenArray],
        narrowed: NarrowedVocabulary | None = None,
    ) -> None:
        """`narrowed` is the vocabulary of the models to compare, if it is a smaller one."""
        self._tokenizer = tokenizer
        self._windows = list(windows)
        self._narrowed = narrowed
        teacher: Ranker = self._open(checkpoint, "none", exact=True)
        if narrowed is not None:
            teacher = FoldedReference(teacher, narrowed)
        self._known = [teacher.rank(tokens, TOP_K, []) for tokens in self._windows]
        teacher.close()

    def measure(self, checkpoint: DecoderCheckpoint, weights: str | Weights = "none") -> float:
        """The mean KL divergence in nats of a modified model, computed as in serving."""
        return self.compare(checkpoint, weights).kl_divergence

    def compare(self, checkpoint: DecoderCheckpoint, weights: str | Weights = "none") -> Difference:
        """Both differences of a modified model, computed as in serving."""
        student = self._open(checkpoint, weights, exact=False)
        total, compared, lost, count = 0.0, 0, 0.0, 0
        for tokens, known in zip(self._windows, self._known, strict=True):
            text = None if self._narrowed is None else self._narrowed.align(tokens, _all(tokens))
            read, places = tokens, np.arange(len(tokens) - 1)
            if text is not None:
                read, places = text.tokens, text.places
            shared = np.flatnonzero(places >= 0)
            at = places[shared]
            ids = np.zeros((len(read) - 1, known.ids.shape[1] + 1), np.int64)
            ids[at, :-1] = known.ids[shared]
            ids[:, -1] = read[1:]
            logprobs = student.score(read, ids).logprobs
            tail = np.maximum(0, 1 - np.exp(known.logprobs.astype(np.float64)).sum(axis=1))
            found = coarse_divergence(
                known.logprobs[shared], tail[shared].astype(np.float32), logprobs[at, :-1]
            )
            total += float(found.sum())
            compared += len(shared)
            target = logprobs[:, -1] if text is None else text.sum_over_text(logprobs[:, -1])
            lost += float((known.target - target).sum(dtype=np.float64))
            count += len(tokens) - 1
        student.close()
        return Difference(total / compared, lost / count)

    def measure_loss(self, checkpoint: DecoderCheckpoint, narrowed: NarrowedVocabulary) -> float:
        """The loss of a model with any smaller vocabulary, in nats per token of the original."""
        student = self._open(checkpoint, "none", exact=False)
        lost, count = 0.0, 0
        for tokens, known in zip(self._windows, self._known, strict=True):
            text = narrowed.align(tokens, _all(tokens))
            logprobs = student.score(text.tokens, text.tokens[1:, None]).logprobs[:, 0]
            lost += float((known.target - text.sum_over_text(logprobs)).sum(dtype=np.float64))
            count += len(tokens) - 1
        student.close()
        return lost / count

    def _open(
        self, checkpoint: DecoderCheckpoint, weights: str | Weights, *, exact: bool
    ) -> OpenVinoScorer:
        model = build_decoder(checkpoint, weights)
        return OpenVinoScorer(
            model, self._tokenizer, "", "",
            context_length=checkpoint.shape.context_length, exact=exact,
        )  # fmt: skip


def _all(tokens: TokenArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.ones(len(tokens) - 1, np.bool_)
