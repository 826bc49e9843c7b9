"""The running average of the weights, which takes the place of a learning rate that falls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

AVERAGE_POWER = 7.0
"""Step t keeps (1 - 1/t)^8 of the average, which so covers about the last ninth of the steps,
however many there are. Karras et al. 2024, 2312.02696, section 3.1."""


def take_average(average: dict[str, Any], trained: Mapping[str, Any], step: int) -> None:
    """Add the weights after a step to their average, which the first step fills."""
    keep = (1 - 1 / step) ** (AVERAGE_POWER + 1)
    if not average:
        average |= {name: p.detach().clone() for name, p in trained.items()}
    weights = [parameter.detach() for parameter in trained.values()]
    torch._foreach_lerp_(list(average.values()), weights, 1 - keep)


def swap(average: dict[str, Any], trained: Mapping[str, Any]) -> None:
    """Put the averages in the place of the weights, and the weights in that of the averages."""
    for name, value in average.items():
        parameter = trained[name]
        average[name], parameter.data = parameter.data, value
