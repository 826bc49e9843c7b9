"""Losses of preference training. Shapes are those of one batch of B answers; values are in nats.

A log-probability is that of a whole answer: the sum over its tokens. `policy` is the model in
training, `reference` the model as it was before.
"""

from __future__ import annotations

from typing import Any

from torch.nn.functional import logsigmoid

Tensor = Any
"""A `torch.Tensor`."""


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """The loss of pairs, [B], from log-probabilities [B] each. Rafailov et al. 2023, 2305.18290,
    equation 7.
    """
    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -logsigmoid(beta * margin)


def estimate_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """How far the policy is from the reference, a number of at least 0, from the log-probabilities
    [B] of answers that belong to other prompts. Ethayarajh et al. 2024, 2402.01306, section 4.1. It
    has no gradient.
    """
    return (policy - reference).mean().detach().clamp(min=0)


def kto(
    policy: Tensor,
    reference: Tensor,
    liked: Tensor,
    kl: Tensor,
    *,
    beta: float,
    liked_weight: float,
    disliked_weight: float,
) -> Tensor:
    """The loss of judged answers, [B], from log-probabilities [B], `liked` [B] of booleans and `kl`
    (`estimate_kl`). The same paper, equation 8, without the constant.
    """
    ratio = policy - reference
    sign = liked.to(ratio.dtype) * 2 - 1
    weight = liked.to(ratio.dtype) * (liked_weight - disliked_weight) + disliked_weight
    return weight * (1 - (beta * sign * (ratio - kl)).sigmoid())
