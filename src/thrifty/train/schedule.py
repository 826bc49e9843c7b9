"""How many examples a step has, and how fast it learns, where nothing else is said."""

from __future__ import annotations

import math

from thrifty.train.settings import LoopSettings
from thrifty.train.state import Objective

STEPS = 500
MOST_BATCH_TOKENS = 4096
"""The default batch size is at most this, and smaller if that gives fewer than `STEPS` steps."""
MINUTES_BATCH_TOKENS = 1024
"""The default batch size for trainings that may go on: it cannot depend on their length."""
RATE, RATE_TOKENS, MOST_RATE = 3e-4, 512, 5e-4
"""The default peak of a cosine for steps of so many tokens; it grows with their square root."""
CONSTANT_RATE, CONSTANT_RATE_TOKENS = 1e-4, 1024
"""The same for a constant rate, which never falls and so has to be lower. A SmolLM2-135M with an
eighth of its parameters pruned is farther from its teacher after 150,000 tokens at 4e-4 than
before them; at 1e-4 it is nearer after each 13,000 (`benchmarks/distillation_choices.py`)."""
FAR, NEAREST = 0.5, 0.03
"""From this divergence on, in nats per token, a student learns at the full rate; and the least part
of that rate."""
LAST_RATE = 0.1
"""The final learning rate of a cosine, relative to the peak."""
CONSTANT_WARM_UP = 5
"""Steps of the warm-up of a constant learning rate: a twentieth of those that a training in minutes
has on slow cores. It cannot depend on their number, which is not known yet."""
FALL_SHARE = 0.25
"""The share of the time in which a constant rate falls at the end of a training in minutes."""


def count_examples(training: LoopSettings, objective: Objective) -> int:
    """The number of examples in a step."""
    if training.batch_examples is not None:
        return training.batch_examples
    if training.batch_tokens is not None:
        return max(1, training.batch_tokens // objective.example_tokens)
    tokens = (
        MINUTES_BATCH_TOKENS
        if training.tokens is None
        else min(MOST_BATCH_TOKENS, training.tokens // STEPS)
    )
    return max(training.micro_batch, tokens // objective.example_tokens)


def choose_rate(
    training: LoopSettings, batch_tokens: int, divergence: float | None = None
) -> float:
    """The peak learning rate of steps of so many tokens, as it is set or by default.

    `divergence` is that of a student from its teacher before the first step, in nats per token. A
    student that is near its teacher has to learn slowly: the noise of its steps would add more
    divergence than there is to remove.
    """
    if training.learning_rate is not None:
        return training.learning_rate
    if divergence is not None:
        near = max(NEAREST, min(1.0, divergence / FAR))
        return near * choose_rate(training, batch_tokens)
    if training.averages and not training.lora_rank:
        return CONSTANT_RATE * math.sqrt(batch_tokens / CONSTANT_RATE_TOKENS)
    return min(MOST_RATE, RATE * math.sqrt(batch_tokens / RATE_TOKENS))


def find_rate(training: LoopSettings, highest: float, step: int, steps: int | None) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine over all `steps`, or a
    constant.
    """
    if training.averages:
        return highest * min(1.0, (step + 1) / CONSTANT_WARM_UP)
    assert steps is not None
    warm = training.warm_up * steps
    if step < warm:
        return highest * (step + 1) / max(1.0, warm)
    share = (step - warm) / max(1.0, steps - warm)
    return highest * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share)))


def find_fall(now_s: float, left_s: float) -> float:
    """How much of its fall a training in minutes has before it, after `now_s` seconds and with
    `left_s` to come: above 1 before the fall, 0 at the end.
    """
    left_s = max(0.0, left_s)
    return left_s / max(1e-9, FALL_SHARE * (now_s + left_s))


def lower_rate(left: float) -> float:
    """The part of a constant rate that remains where `left` of its fall (`find_fall`) is to come: 1
    minus the square root of what is over. Haegele et al. 2024, 2405.18392, section 4.
    """
    return 1 - math.sqrt(1 - min(1.0, max(0.0, left)))
