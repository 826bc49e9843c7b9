"""The divergence of a modified decoder from the original, while it is being compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.evaluate.divergence import coarse_divergence
from thrifty.evaluate.openvino_scorer import OpenVinoScorer
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


class DivergenceEvaluator:
    """Records the float model's predictions on some windows, and compares other models with
    them.
    """

    def __init__(
        self,
        checkpoint: DecoderCheckpoint,
        tokenizer: TextTokenizer,
        windows: Sequence[TokenArray],
    ) -> None:
        self._tokenizer = tokenizer
        self._windows = list(windows)
        teacher = self._open(checkpoint, "none", exact=True)
        self._known = [teacher.rank(tokens, TOP_K, []) for tokens in self._windows]
        teacher.close()

    def measure(self, checkpoint: DecoderCheckpoint, weights: str | Weights = "none") -> float:
        """The mean KL divergence in nats of a modified model, computed as in serving."""
        student = self._open(checkpoint, weights, exact=False)
        total, count = 0.0, 0
        for tokens, known in zip(self._windows, self._known, strict=True):
            scored = student.score(tokens, known.ids)
            tail = np.maximum(0, 1 - np.exp(known.logprobs.astype(np.float64)).sum(axis=1))
            found = coarse_divergence(known.logprobs, tail.astype(np.float32), scored.logprobs)
            total += float(found.sum())
            count += len(tokens) - 1
        student.close()
        return total / count

    def _open(
        self, checkpoint: DecoderCheckpoint, weights: str | Weights, *, exact: bool
    ) -> OpenVinoScorer:
        model = build_decoder(checkpoint, weights)
        return OpenVinoScorer(
            model, self._tokenizer, "", "",
            context_length=checkpoint.shape.context_length, exact=exact,
        )  # fmt: skip
