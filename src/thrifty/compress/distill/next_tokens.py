"""The training objective of a decoder: predict the next token as the teacher does."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thrifty.compress.distill.losses import (
    DIVERGENCES,
    add_rest,
    forward_kl,
    hidden_distance,
    teacher_log_probabilities,
)
from thrifty.compress.distill.settings import Training
from thrifty.compress.distill.training_examples import TrainingExample, TrainingExamples
from thrifty.evaluate.torch_model import cache_of
from thrifty.train.state import Objective

LEAST_WEIGHT = 1e-6
"""Of a window of which nothing is learned, so that a step always weighs something."""


class NextTokens(Objective):
    """Examples to learn from, and others to evaluate on, by domain."""

    unit = "nats per token"
    is_divergence = True

    def __init__(
        self,
        examples: TrainingExamples,
        held_out: Sequence[int],
        training: Training,
        layers: Sequence[int] | None = None,
        ends: Collection[int] = (),
    ) -> None:
        """`held_out` are the numbers of the examples to evaluate on. `layers` gives the teacher's
        hidden state that each of the student's is compared with; None spaces them evenly. `ends`
        are the tokens that end an answer.
        """
        self._examples = examples
        self._training = training
        self._layers = layers
        self._held_out = list(held_out)
        apart = set(held_out)
        self._numbers = [number for number in range(examples.count) if number not in apart]
        self.examples = len(self._numbers)
        self.example_tokens = examples.window
        self.held_out_tokens = len(self._held_out) * examples.window
        self.domains = list(dict.fromkeys(map(examples.domain, self._held_out)))
        self._ends = frozenset(ends)
        # One window of each domain is few, if that leaves out half of them.
        first = {examples.domain(number): number for number in reversed(self._held_out)}
        self._few = list(first.values())
        if 2 * len(self._few) <= len(self._held_out):
            self.few_tokens = len(self._few) * examples.window
        # A teacher that is asked meanwhile, and a model that writes, do one thing at a time.
        self.concurrent = not (examples.live or training.on_policy)
        self._divergence = DIVERGENCES[training.divergence]

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """The mean loss over some examples, and how many tokens they have."""
        own = [self._numbers[one] for one in numbers]
        weights = [self._weigh(number) for number in own]
        examples = [self._read(model, number, device) for number in own]
        total: Any = 0.0
        pairs = zip(examples, weights, strict=True)
        for _, group in groupby(pairs, key=lambda pair: len(pair[0].tokens)):
            same = list(group)
            share = sum(weight for _, weight in same) / sum(weights)
            total = total + self._loss(model, same, device) * share
        return total, sum(len(example.tokens) for example in examples)

    def weigh(self, numbers: Sequence[int]) -> float:
        """See `Objective`: the predictions that are learned from, as `TrainingExamples.weigh`."""
        return sum(self._weigh(self._numbers[number]) for number in numbers)

    def _weigh(self, number: int) -> float:
        # What the student writes weighs as much as what it is written in place of.
        return max(LEAST_WEIGHT, self._examples.weigh(number, first=self._is_written(number)))

    def _is_written(self, number: int) -> bool:
        """Whether the student writes in place of a window."""
        training = self._training
        draw = random.Random(f"{training.seed} {number} on-policy").random()
        return draw < training.on_policy

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """For each domain: the sum of the divergence from the teacher over this rank's share of the
        held-out windows, and the number of predictions. Without a teacher, the divergence is
        replaced by the negative log-likelihood of the text.
        """
        return self._sum_up(model, self._held_out[rank::ranks], device)

    def measure_few(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """See `Objective`."""
        return self._sum_up(model, self._few[rank::ranks], device)

    def _sum_up(
        self, model: Any, numbers: Sequence[int], device: Any
    ) -> dict[str, tuple[float, int]]:
        sums = dict.fromkeys(self.domains, (0.0, 0))
        for number in numbers:
            example = self._examples.read(number)
            rows = np.flatnonzero(example.loss_mask)
            student, target, _ = self._run(model, [example], rows, device, hidden=False)
            if self._examples.has_teacher:
                found = forward_kl(self._teach([example], rows, device), student)
            else:
                found = -target
            domain = self._examples.domain(number)
            total, count = sums[domain]
            sums[domain] = total + float(found.sum()), count + len(rows)
        return sums

    def _read(self, model: Any, number: int, device: Any) -> TrainingExample:
        """A window, or what the student writes in its place: another answer to the first text's
        prompt, or another second half of a text without one.
        """
        if not self._is_written(number):
            return self._examples.read(number)
        text = self._examples.text(number)
        first = int(np.argmax(text.counted)) or len(text.tokens) // 2 - 1
        seed = self._training.seed
        draws = random.Random(f"{seed} {self.steps_made} {number} written").getrandbits(63)
        written = _write(
            model, text.tokens[: first + 1], len(text.tokens), self._ends, draws, device
        )
        return self._examples.query_teacher(written, np.arange(len(written) - 1) >= first)

    def _loss(
        self, model: Any, weighed: Sequence[tuple[TrainingExample, float]], device: Any
    ) -> Any:
        """The mean over examples of the same length, each with its weight."""
        training = self._training
        examples = [example for example, _ in weighed]
        rows = np.flatnonzero(np.concatenate([one.loss_mask for one in examples]))
        student, target, hidden = self._run(
            model, examples, rows, device, hidden=training.hidden > 0
        )
        # Each prediction's part of the mean.
        parts = [
            np.full(count, weight / count)
            for example, weight in weighed
            if (count := int(example.loss_mask.sum()))
        ]
        whole = sum(weight for _, weight in weighed)
        part = np.concatenate([*parts, np.zeros(0)]).astype(np.float32) / np.float32(whole)
        part = torch.from_numpy(part).to(device)
        mix = training.mix if self._examples.has_teacher else 1.0
        loss: Any = 0.0
        if mix < 1:
            found = self._divergence(self._teach(examples, rows, device), student)
            loss = loss + (1 - mix) * (found * part).sum()
        if mix > 0:
            loss = loss - mix * (target * part).sum()
        if hidden is not None:
            teacher_states = torch.stack(
                [torch.as_tensor(np.asarray(example.hidden)) for example in examples], dim=1
            ).to(device)
            loss = loss + training.hidden * hidden_distance(teacher_states, hidden, self._layers)
        return loss

    def _run(
        self,
        model: Any,
        examples: Sequence[TrainingExample],
        rows: npt.NDArray[np.int64],
        device: Any,
        *,
        hidden: bool,
    ) -> tuple[Any, Any, Any]:
        """Of the predictions `rows` [N] of all B (T - 1): the student's log-probabilities of the
        teacher's top k tokens and the rest [N, k + 1] (None without a teacher), and those of the
        text's own next tokens [N]. The hidden states are those of all positions,
        [layers + 1, B, T, channels].
        """
        tokens = torch.stack([torch.from_numpy(example.tokens) for example in examples]).to(device)
        positions = torch.from_numpy(np.stack([_positions(example) for example in examples]))
        chosen = torch.from_numpy(rows).to(device)
        wanted = tokens[:, 1:].reshape(-1, 1)[chosen]
        if self._examples.has_teacher:
            ids = np.concatenate([_known(example.ids) for example in examples])[rows]
            wanted = torch.cat([wanted, torch.from_numpy(ids).to(device)], dim=1)
        # Restarting position ids keep texts that share a window from attending to each other.
        found, states = model(tokens, positions.to(device), wanted, hidden, chosen)
        student = add_rest(found[:, 1:]) if self._examples.has_teacher else None
        return student, found[:, 0], states

    def _teach(
        self, examples: Sequence[TrainingExample], rows: npt.NDArray[np.int64], device: Any
    ) -> Any:
        logprobs = np.concatenate([_known(example.logprobs) for example in examples])[rows]
        tail = np.concatenate([_known(example.tail) for example in examples])[rows]
        return teacher_log_probabilities(
            torch.from_numpy(logprobs).to(device), torch.from_numpy(tail).to(device)
        )


def _positions(example: TrainingExample) -> Any:
    return np.arange(len(example.tokens)) if example.positions is None else example.positions


def _known(values: Any) -> Any:
    assert values is not None, "an example with a teacher has all of its predictions"
    return values


def _write(
    model: Any, prompt: Any, length: int, ends: Collection[int], seed: int, device: Any
) -> Any:
    """`prompt` and the student's sampled continuation, up to one of the tokens `ends`, or `length`
    tokens in total. The same `seed` samples the same from the same weights.
    """
    inner = getattr(model, "module", model).inner
    training = inner.training
    inner.eval()
    draws = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        tokens = torch.from_numpy(prompt)[None].to(device)
        past: dict[str, Any] = {}
        step = tokens
        while tokens.shape[1] < length:
            out = inner(step, use_cache=True, **past)
            past = cache_of(out)
            shares = out.logits[:, -1].float().softmax(dim=1)
            step = torch.multinomial(shares, 1, generator=draws)
            tokens = torch.cat([tokens, step], dim=1)
            if int(step) in ends:
                break
    inner.train(training)
    return tokens[0].cpu().numpy()
