"""Which share of the other versions' conversations a judge scores, beside all of the candidate's."""

from __future__ import annotations

OTHERS = 3.0
"""Conversations with the other versions that are scored, for each with the candidate."""


def find_rate(share: float) -> float:
    """The share of the other versions' conversations that is scored, at a share of the candidate."""
    return min(1.0, OTHERS * share / (1 - share)) if 0 < share < 1 else 0.0


def find_chance(share: float) -> float:
    """The candidate's share among the conversations that are scored."""
    if not 0 < share < 1:
        return share
    return share / (share + (1 - share) * find_rate(share))
