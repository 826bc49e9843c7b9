"""How far a student's next-token distribution is from a teacher's, of which the likeliest are known.

Both are taken as k + 1 outcomes: the teacher's k likeliest tokens, and all others as one. Everything is
in nats a token; shapes are those of one batch of T predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensor = Any
"""A `torch.Tensor`."""

LEAST_MASS = 1e-7
SKEW = 0.1
"""How much of the other distribution is mixed in, for the skewed ones."""


def add_rest(known: Tensor) -> Tensor:
    """Log-probabilities of k tokens [T, k], and behind them of all others together: [T, k + 1]."""
    rest = (1 - known.exp().sum(dim=1, keepdim=True)).clamp_min(LEAST_MASS).log()
    return torch.cat([known, rest], dim=1)


def teacher_log_probabilities(logprobs: Tensor, tail: Tensor) -> Tensor:
    """The same of what is kept of a teacher: log-probabilities [T, k], and the mass of the others [T]."""
    joined = torch.cat([logprobs, tail.clamp_min(LEAST_MASS).log()[:, None]], dim=1)
    # Rounding must not make mass.
    return joined.log_softmax(dim=1)


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student): the student covers all that the teacher says. [T]."""
    return (teacher.exp() * (teacher - student)).sum(dim=1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || teacher): the student says nothing that the teacher would not. [T]."""
    return forward_kl(student, teacher)


def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean divergence of both from their mean. Bounded by log 2. [T]."""
    middle = _mix(teacher, student, 0.5)
    return 0.5 * forward_kl(teacher, middle) + 0.5 * forward_kl(student, middle)


def skewed_forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student with some of the teacher): calmer gradients. Ko et al. 2024, 2402.03898. [T]."""
    return forward_kl(teacher, _mix(teacher, student, SKEW))


def skewed_reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || teacher with some of the student). [T]."""
    return forward_kl(student, _mix(student, teacher, SKEW))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jensen-shannon": jensen_shannon,
    "skewed-forward": skewed_forward_kl,
    "skewed-reverse": skewed_reverse_kl,
}
"""By the name that `thrifty distill --divergence` takes."""


def hidden_distance(teacher: Tensor, student: Tensor, layers: Sequence[int] | None) -> Tensor:
    """The mean of 1 - cosine between hidden states of the same width, [layers + 1, B, T, channels] each.
    `layers` gives for each of the student's the teacher's; None spreads them evenly.
    """
    count, last = student.shape[0], teacher.shape[0] - 1
    if layers is None:
        layers = [round(index * last / (count - 1)) for index in range(count)]
    paired = teacher[list(layers)].to(student.dtype)
    return 1 - torch.nn.functional.cosine_similarity(paired, student, dim=-1).mean()


def _mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The logarithm of `share` of the first and the rest of the second."""
    pair = torch.stack([
        first + torch.log(torch.tensor(share)), second + torch.log(torch.tensor(1 - share)),
    ])  # fmt: skip
    return pair.logsumexp(dim=0)
