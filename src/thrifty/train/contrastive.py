"""Contrastive training of encoders: a query is near the text that belongs to it, not to others.

The others are the negatives of its row, and all texts of the other rows that are computed with it.
So the size of a micro-batch is part of what is learned. Texts that equal the query's own positive
text are no negatives, wherever they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from thrifty.errors import TrainingError
from thrifty.train.examples import Example, TokenText
from thrifty.train.settings import RowSettings
from thrifty.train.state import Objective

Tensor = Any
"""A `torch.Tensor`."""


class Contrastive(Objective):
    """Examples to learn from, and others to evaluate on."""

    unit = "nats per query"

    def __init__(
        self,
        learned: Sequence[Example],
        held_out: Sequence[Example],
        settings: RowSettings,
        pooling: str,
    ) -> None:
        """`pooling` is that of the encoder: `mean` or `cls`."""
        if settings.micro_batch < 2:
            raise TrainingError(
                "a query is compared with the texts of other rows in its micro-batch; set "
                "--micro-batch to at least 2"
            )
        self._learned = learned
        self._held_out = held_out
        self._settings = settings
        self._pooling = pooling
        self.examples = len(learned)
        sizes = [example.tokens for example in learned]
        self.example_tokens = max(1, round(sum(sizes) / max(1, len(sizes))))
        self.held_out_tokens = sum(example.tokens for example in held_out)
        self.domains = [""]
        self.concurrent = True

    def describe(self, notes: Sequence[tuple[float, float]]) -> dict[str, float]:
        """See `Objective`. The share of queries whose own text is the nearest of those that they
        are compared with.
        """
        return {"first": float(np.mean([first for _, first in notes]))} if notes else {}

    def weigh(self, numbers: Sequence[int]) -> float:
        """See `Objective`."""
        return len(numbers)

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """See `Objective`."""
        examples = [self._learned[number] for number in numbers]
        found, _ = self._compare(model, examples, device)
        return found.mean(), sum(example.tokens for example in examples)

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """See `Objective`."""
        total, count = 0.0, 0
        notes: list[tuple[float, float]] = []
        for group in self._groups(rank, ranks):
            found, nearest = self._compare(model, group, device)
            total, count = total + float(found.sum()), count + len(group)
            notes += [(1.0, float(first)) for first in nearest.tolist()]
        self.notes = notes
        return {"": (total, count)}

    def measure_each(self, model: Any, device: Any) -> list[float]:
        """The loss of each held-out example, in order."""
        groups = self._groups(0, 1)
        return [one for group in groups for one in self._compare(model, group, device)[0].tolist()]

    def _groups(self, rank: int, ranks: int) -> list[Sequence[Example]]:
        own, size = self._held_out[rank::ranks], self._settings.micro_batch
        return [own[at : at + size] for at in range(0, len(own), size)]

    def _compare(
        self, model: Any, examples: Sequence[Example], device: Any
    ) -> tuple[Tensor, Tensor]:
        """The loss of each query [B], and whether its own text is the nearest one [B]."""
        queries = [example.texts[0] for example in examples]
        texts = [example.texts[1] for example in examples]
        texts += [text for example in examples for text in example.texts[2:]]
        near, all_texts = (embed(model, some, self._pooling, device) for some in (queries, texts))
        return compare(near, all_texts, texts, self._settings.temperature)


def compare(
    queries: Tensor, embedded: Tensor, texts: Sequence[TokenText], temperature: float
) -> tuple[Tensor, Tensor]:
    """InfoNCE of queries [B, channels] among texts [N, channels], N >= B, all of unit length: text
    i belongs to query i. Returns the loss of each query in nats, [B], and whether its text is the
    nearest, [B]. `texts` tells which of them are the same.
    """
    count = len(queries)
    scores = queries @ embedded.T / temperature
    same = torch.tensor(
        [
            [at != own and text.tokens == texts[own].tokens for at, text in enumerate(texts)]
            for own in range(count)
        ],
        device=scores.device,
    )
    scores = scores.masked_fill(same, -torch.inf)
    own = torch.arange(count, device=scores.device)
    return torch.nn.functional.cross_entropy(scores, own, reduction="none"), scores.argmax(1) == own


def embed(model: Any, texts: Sequence[TokenText], pooling: str, device: Any) -> Tensor:
    """Embeddings of unit length, [texts, channels]."""
    rows = [torch.tensor(text.tokens, dtype=torch.int64) for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(tokens.shape[1], device=device)[None] < lengths[:, None]
    return pool(model, tokens, mask, pooling)


def pool(model: Any, tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Embeddings of unit length, [texts, channels], of padded tokens [texts, T] and their mask."""
    states = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.float()
    if pooling == "cls":
        pooled = states[:, 0]
    else:
        weights = mask[:, :, None].float()
        pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
    return torch.nn.functional.normalize(pooled, dim=1)
