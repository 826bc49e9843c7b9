"""The training objective of a decoder: predict the next token as the teacher does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
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
    ) -> None:
        """`held_out` are the numbers of the examples to evaluate on. `layers` gives the teacher's
        hidden state that each of the student's is compared with; None spaces them evenly.
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
        # A teacher that is asked meanwhile, and a model that writes, do one thing at a time.
        self.concurrent = not (examples.live or training.on_policy)
        self._divergence = DIVERGENCES[training.divergence]

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """The mean loss over some examples, and how many tokens they have."""
        examples = [self._read(model, self._numbers[one], device) for one in numbers]
        total: Any = 0.0
        for _, group in groupby(examples, key=lambda example: len(example.tokens)):
            same = list(group)
            total = total + self._loss(model, same, device) * (len(same) / len(examples))
        return total, sum(len(example.tokens) for example in examples)

    def weigh(self, numbers: Sequence[int]) -> float:
        """See `Objective`."""
        return len(numbers)

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """For each domain: the sum of the divergence from the teacher over this rank's share of the
        held-out windows, and the number of predictions. Without a teacher, the divergence is
        replaced by the negative log-likelihood of the text.
        """
        sums = dict.fromkeys(self.domains, (0.0, 0))
        for number in self._held_out[rank::ranks]:
            example = self._examples.read(number)
            student, target, _ = self._run(model, [example], device, hidden=False)
            if self._examples.has_teacher:
                found = forward_kl(self._teach([example], device), student)
            else:
                found = -target
            mask = torch.from_numpy(example.loss_mask).to(device)
            domain = self._examples.domain(number)
            total, count = sums[domain]
            sums[domain] = total + float(found[mask].sum()), count + int(mask.sum())
        return sums

    def _read(self, model: Any, number: int, device: Any) -> TrainingExample:
        training = self._training
        if random.Random(f"{training.seed} {number} on-policy").random() >= training.on_policy:
            return self._examples.read(number)
        tokens = self._examples.text(number)
        first = len(tokens) // 2
        return self._examples.query_teacher(
            _write(model, tokens[:first], len(tokens), device), first - 1
        )

    def _loss(self, model: Any, examples: Sequence[TrainingExample], device: Any) -> Any:
        training = self._training
        student, target, hidden = self._run(model, examples, device, hidden=training.hidden > 0)
        mask = torch.from_numpy(np.concatenate([one.loss_mask for one in examples])).to(device)
        mix = training.mix if self._examples.has_teacher else 1.0
        loss: Any = 0.0
        if mix < 1:
            found = self._divergence(self._teach(examples, device), student)
            loss = loss + (1 - mix) * _mean(found, mask)
        if mix > 0:
            loss = loss - mix * _mean(target, mask)
        if hidden is not None:
            teacher_states = torch.stack(
                [torch.as_tensor(np.asarray(example.hidden)) for example in examples], dim=1
            ).to(device)
            loss = loss + training.hidden * hidden_distance(teacher_states, hidden, self._layers)
        return loss

    def _run(
        self, model: Any, examples: Sequence[TrainingExample], device: Any, *, hidden: bool
    ) -> tuple[Any, Any, Any]:
        """The student's log-probabilities of the teacher's top k tokens and the rest
        [B (T - 1), k + 1] (None without a teacher), those of the text's own next tokens
        [B (T - 1)], and the hidden states [layers + 1, B, T, channels].
        """
        tokens = torch.stack([torch.from_numpy(example.tokens) for example in examples]).to(device)
        positions = torch.from_numpy(np.stack([_positions(example) for example in examples]))
        wanted = tokens[:, 1:].reshape(-1, 1)
        if self._examples.has_teacher:
            ids = np.concatenate([_known(example.ids) for example in examples])
            wanted = torch.cat([wanted, torch.from_numpy(ids).to(device)], dim=1)
        # Restarting position ids keep texts that share a window from attending to each other.
        found, states = model(tokens, positions.to(device), wanted, hidden)
        student = add_rest(found[:, 1:]) if self._examples.has_teacher else None
        return student, found[:, 0], states

    def _teach(self, examples: Sequence[TrainingExample], device: Any) -> Any:
        logprobs = np.concatenate([_known(example.logprobs) for example in examples])
        tail = np.concatenate([_known(example.tail) for example in examples])
        return teacher_log_probabilities(
            torch.from_numpy(logprobs).to(device), torch.from_numpy(tail).to(device)
        )


def _mean(values: Any, mask: Any) -> Any:
    """The mean of what counts; 0 if nothing does."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def _positions(example: TrainingExample) -> Any:
    return np.arange(len(example.tokens)) if example.positions is None else example.positions


def _known(values: Any) -> Any:
    assert values is not None, "an example with a teacher has all of its predictions"
    return values


def _write(model: Any, prompt: Any, length: int, device: Any) -> Any:
    """`prompt` and the student's sampled continuation, `length` tokens in total."""
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
