"""The training objective of an encoder: embed texts as the teacher does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.compress.distill.settings import Training
from thrifty.evaluate.torch_model import load_torch_model
from thrifty.evaluate.windows import TokenArray
from thrifty.train.child import load_trained
from thrifty.train.contrastive import pool
from thrifty.train.state import Objective

RELATIONS = 1.0
"""The weight of the loss on pairwise similarities: those of the texts in one batch."""


class Embeddings(Objective):
    """Texts to learn from, followed by `held_out` texts to evaluate on."""

    unit = "1 - cosine"

    def __init__(
        self,
        teacher: Any,
        texts: Sequence[TokenArray],
        held_out: int,
        poolings: tuple[str, str],
        *,
        same_width: bool,
    ) -> None:
        """`poolings` are those of the student and the teacher: `mean` or `cls`."""
        self._teacher = teacher
        self._texts = texts
        self._poolings = poolings
        self._same_width = same_width
        self.examples = len(texts) - held_out
        self.example_tokens = max(1, round(float(np.mean([len(text) for text in texts]))))
        self.held_out_tokens = held_out * self.example_tokens
        self.domains = [""]
        self.concurrent = True
        if not same_width:
            self.unit = "squared difference of similarities"

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """See `Objective`."""
        student, teacher, count = self._embed(model, numbers, device)
        loss = RELATIONS * _relations(student, teacher)
        if self._same_width:
            loss = loss + (1 - (student * teacher).sum(dim=1)).mean()
        return loss, count

    def weigh(self, numbers: Sequence[int]) -> float:
        """See `Objective`."""
        return len(numbers)

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """See `Objective`."""
        total, count = 0.0, 0
        numbers = list(range(self.examples + rank, len(self._texts), ranks))
        for at in range(0, len(numbers), 32):
            group = numbers[at : at + 32]
            student, teacher, _ = self._embed(model, group, device)
            if self._same_width:
                total += float((1 - (student * teacher).sum(dim=1)).sum())
            else:
                total += float(_relations(student, teacher)) * len(group)
            count += len(group)
        return {"": (total, count)}

    def _embed(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, Any, int]:
        texts = [torch.from_numpy(self._texts[number]) for number in numbers]
        tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        mask = torch.arange(tokens.shape[1], device=device)[None] < lengths[:, None]
        student = pool(model, tokens, mask, self._poolings[0])
        with torch.no_grad():
            teacher = pool(self._teacher, tokens, mask, self._poolings[1])
        return student, teacher, int(lengths.sum())


def make_objective(job: dict[str, Any], training: Training) -> tuple[Any, Embeddings]:
    """The student of a job, and its objective."""
    student, teacher = Path(job["student"]), Path(job["teacher"])
    model = load_trained(
        student, training, "AutoModel", freeze_embeddings=training.freeze_embeddings
    )
    taught = load_torch_model(teacher, f"the model in {teacher}", "AutoModel")
    taught.requires_grad_(False).eval()
    taught.to("cuda" if torch.cuda.is_available() else "cpu")
    lines = (Path(job["folder"]) / job["texts"]).read_bytes().splitlines()
    texts = [np.array(json.loads(line)["tokens"], np.int64) for line in lines]
    poolings = (load_encoder(student).shape.pooling, load_encoder(teacher).shape.pooling)
    same = model.config.hidden_size == taught.config.hidden_size
    held_out = max(1, min(len(texts) // 10, 256))
    return model, Embeddings(taught, texts, held_out, poolings, same_width=same)


def _relations(student: Any, teacher: Any) -> Any:
    return ((student @ student.T) - (teacher @ teacher.T)).square().mean()
