"""Losses between the next-token distributions of a student and a teacher.

Only the teacher's k likeliest tokens are known, so both distributions are treated as k + 1
outcomes: these tokens, and all others as one. Values are in nats per token; shapes are those of one
batch of T predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensor = Any
"""A `torch.Tensor`."""

LEAST_MASS = 1e-7
SKEW = 0.1
"""The share of the other distribution that the skewed divergences mix in."""


def add_rest(known: Tensor) -> Tensor:
    """Append the log-probability of all other tokens to those of k tokens [T, k]: [T, k + 1]."""
    rest = (1 - known.exp().sum(dim=1, keepdim=True)).clamp_min(LEAST_MASS).log()
    return torch.cat([known, rest], dim=1)


def teacher_log_probabilities(logprobs: Tensor, tail: Tensor) -> Tensor:
    """The same for a recorded teacher: log-probabilities [T, k] and the mass of the others [T]."""
    joined = torch.cat([logprobs, tail.clamp_min(LEAST_MASS).log()[:, None]], dim=1)
    # Normalize, so that rounding does not add probability mass.
    return joined.log_softmax(dim=1)


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student), [T]: the student should cover all that the teacher predicts."""
    return (teacher.exp() * (teacher - student)).sum(dim=1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || teacher), [T]: the student should predict only what the teacher would."""
    return forward_kl(student, teacher)


def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean divergence of both from their average, [T]. At most log 2."""
    middle = _mix(teacher, student, 0.5)
    return 0.5 * forward_kl(teacher, middle) + 0.5 * forward_kl(student, middle)


def skewed_forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || mixture of student and teacher), [T]: smoother gradients.

    Ko et al. 2024, 2402.03898.
    """
    return forward_kl(teacher, _mix(teacher, student, SKEW))


def skewed_reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || mixture of teacher and student), [T]."""
    return forward_kl(student, _mix(student, teacher, SKEW))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jensen-shannon": jensen_shannon,
    "skewed-forward": skewed_forward_kl,
    "skewed-reverse": skewed_reverse_kl,
}
"""By the names that `thrifty distill --divergence` accepts."""


def hidden_distance(teacher: Tensor, student: Tensor, layers: Sequence[int] | None) -> Tensor:
    """1 minus the mean cosine similarity of hidden states, [layers + 1, B, T, channels] each.

    `layers` gives the teacher's hidden state for each of the student's; None spaces them evenly.
    """
    count, last = student.shape[0], teacher.shape[0] - 1
    if layers is None:
        layers = [round(index * last / (count - 1)) for index in range(count)]
    paired = teacher[list(layers)].to(student.dtype)
    return 1 - torch.nn.functional.cosine_similarity(paired, student, dim=-1).mean()


def _mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The logarithm of a mixture: `share` of the first, the rest of the second."""
    pair = torch.stack([
        first + torch.log(torch.tensor(share)), second + torch.log(torch.tensor(1 - share)),
    ])  # fmt: skip
    return pair.logsumexp(dim=0)
