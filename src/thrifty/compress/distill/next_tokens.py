"""A decoder's objective: to say of the next token what its teacher says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from thrifty.compress.distill.lessons import Lesson, Lessons
from thrifty.compress.distill.losses import (
    DIVERGENCES,
    add_rest,
    forward_kl,
    hidden_distance,
    teacher_log_probabilities,
)
from thrifty.compress.distill.settings import Training
from thrifty.evaluate.torch_model import cache_of


class NextTokens:
    """The last `held_out` of the lessons are looked at; the others are learned from."""

    unit = "nats a token"

    def __init__(
        self,
        lessons: Lessons,
        held_out: int,
        training: Training,
        layers: Sequence[int] | None = None,
    ) -> None:
        """`layers`: for each of the student's hidden states, the teacher's that it is compared with; None
        spreads them evenly.
        """
        self._lessons = lessons
        self._training = training
        self._layers = layers
        self.examples = lessons.count - held_out
        self.example_tokens = lessons.window
        self.held_out_tokens = held_out * lessons.window
        self._divergence = DIVERGENCES[training.divergence]

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """The mean loss over some lessons, and how many tokens they have."""
        lessons = [self._read(model, number, device) for number in numbers]
        total: Any = 0.0
        for _, group in groupby(lessons, key=lambda lesson: len(lesson.tokens)):
            same = list(group)
            total = total + self._loss(model, same, device) * (len(same) / len(lessons))
        return total, sum(len(lesson.tokens) for lesson in lessons)

    def measure(self, model: Any, device: Any, rank: int, ranks: int) -> tuple[float, int]:
        """The sum of the held-out divergence from the teacher (without one: of the text's negative
        log-likelihood) over this rank's share of the windows, and over how many predictions.
        """
        total, count = 0.0, 0
        for number in range(self.examples + rank, self._lessons.count, ranks):
            lesson = self._lessons.read(number)
            student, target, _ = self._run(model, [lesson], device, hidden=False)
            if self._lessons.taught:
                found = forward_kl(self._teach([lesson], device), student)
            else:
                found = -target
            counts = torch.from_numpy(lesson.counts).to(device)
            total += float(found[counts].sum())
            count += int(counts.sum())
        return total, count

    def _read(self, model: Any, number: int, device: Any) -> Lesson:
        training = self._training
        if random.Random(f"{training.seed} {number} on-policy").random() >= training.on_policy:
            return self._lessons.read(number)
        tokens = self._lessons.text(number)
        first = len(tokens) // 2
        return self._lessons.ask(_write(model, tokens[:first], len(tokens), device), first - 1)

    def _loss(self, model: Any, lessons: Sequence[Lesson], device: Any) -> Any:
        training = self._training
        student, target, hidden = self._run(model, lessons, device, hidden=training.hidden > 0)
        counts = torch.from_numpy(np.concatenate([one.counts for one in lessons])).to(device)
        mix = training.mix if self._lessons.taught else 1.0
        loss: Any = 0.0
        if mix < 1:
            found = self._divergence(self._teach(lessons, device), student)
            loss = loss + (1 - mix) * found[counts].mean()
        if mix > 0:
            loss = loss - mix * target[counts].mean()
        if hidden is not None:
            taught = torch.stack(
                [torch.as_tensor(np.asarray(lesson.hidden)) for lesson in lessons], dim=1
            ).to(device)
            loss = loss + training.hidden * hidden_distance(taught, hidden, self._layers)
        return loss

    def _run(
        self, model: Any, lessons: Sequence[Lesson], device: Any, *, hidden: bool
    ) -> tuple[Any, Any, Any]:
        """The student's coarse log-probabilities [B (T - 1), k + 1] (nothing, without a teacher), those of
        the tokens that come [B (T - 1)], and its hidden states [layers + 1, B, T, channels].
        """
        tokens = torch.stack([torch.from_numpy(lesson.tokens) for lesson in lessons]).to(device)
        positions = torch.from_numpy(np.stack([_positions(lesson) for lesson in lessons]))
        wanted = tokens[:, 1:].reshape(-1, 1)
        if self._lessons.taught:
            ids = np.concatenate([_known(lesson.ids) for lesson in lessons])
            wanted = torch.cat([wanted, torch.from_numpy(ids).to(device)], dim=1)
        # Positions that begin again keep texts that share a window from seeing each other.
        found, states = model(tokens, positions.to(device), wanted, hidden)
        student = add_rest(found[:, 1:]) if self._lessons.taught else None
        return student, found[:, 0], states

    def _teach(self, lessons: Sequence[Lesson], device: Any) -> Any:
        logprobs = np.concatenate([_known(lesson.logprobs) for lesson in lessons])
        tail = np.concatenate([_known(lesson.tail) for lesson in lessons])
        return teacher_log_probabilities(
            torch.from_numpy(logprobs).to(device), torch.from_numpy(tail).to(device)
        )


def _positions(lesson: Lesson) -> Any:
    return np.arange(len(lesson.tokens)) if lesson.positions is None else lesson.positions


def _known(values: Any) -> Any:
    assert values is not None, "a lesson that is taught has all of the teacher's words"
    return values


def _write(model: Any, prompt: Any, length: int, device: Any) -> Any:
    """`prompt` and what the student samples behind it, `length` tokens in all."""
    inner = getattr(model, "module", model).inner
    training = inner.training
    inner.eval()
    with torch.no_grad():
        tokens = torch.from_numpy(prompt)[None].to(device)
        past: dict[str, Any] = {}
        step = tokens
        while tokens.shape[1] < length:
            out = inner(step, use_cache=True, **past)
            past = cache_of(out)
            step = torch.multinomial(out.logits[:, -1].float().softmax(dim=1), 1)
            tokens = torch.cat([tokens, step], dim=1)
    inner.train(training)
    return tokens[0].cpu().numpy()
