"""Estimates of a request's tokens and cost before its answer is known. Token ratios are learned
from answers; costs come from the version's prices.

`router` learns its own ratio and mean: it counts only the bytes of the prompt, and only if there is
a choice of replicas. The length of the body, which this module uses, is known for every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.db.fleet import VersionSettings

TOKENS_PER_BYTE = 0.25
"""Initial ratio for the bytes of a request's body."""
ANSWER_TOKENS = 128.0
"""Initial length of an answer that the request does not bound."""
WEIGHT = 0.05
"""The weight of one answer in the moving averages."""
PER_MILLION = 1e-6


class Estimator:
    """Learned token counts of requests to one version."""

    __slots__ = ("answer_tokens", "tokens_per_byte")

    def __init__(self) -> None:
        self.tokens_per_byte = TOKENS_PER_BYTE
        self.answer_tokens = ANSWER_TOKENS

    def estimate(self, body: Mapping[str, Any], body_bytes: int) -> tuple[int, int]:
        """Tokens of the prompt and of the answer. If the request bounds its answer, the bound is
        used. Each choice (`n`) counts as one answer.
        """
        prompt = max(1, round(body_bytes * self.tokens_per_byte))
        if "input" in body or "query" in body:  # embeddings and rankings generate nothing
            return prompt, 0
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        answer = asked if asked is not None else round(self.answer_tokens)
        return prompt, answer * (body.get("n") or 1)

    def learn(self, body_bytes: int, prompt_tokens: int, answer_tokens: int) -> None:
        """Learn from the token counts of an answered request."""
        if body_bytes > 0 and prompt_tokens > 0:
            ratio = prompt_tokens / body_bytes
            self.tokens_per_byte += WEIGHT * (ratio - self.tokens_per_byte)
        if answer_tokens > 0:
            self.answer_tokens += WEIGHT * (answer_tokens - self.answer_tokens)


def compute_cost(
    settings: VersionSettings, prompt_tokens: int, answer_tokens: int, cached_tokens: int = 0
) -> float:
    """The cost of a request. `cached_tokens` of the prompt came from a prefix cache."""
    return PER_MILLION * (
        (prompt_tokens - cached_tokens) * settings.price_input
        + cached_tokens * settings.price_cached
        + answer_tokens * settings.price_output
    )
