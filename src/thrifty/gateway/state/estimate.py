"""What a request will take, before its answer tells: tokens by a ratio and a mean that are learned
from answers, cost by the version's prices.

`router` has a ratio and a mean of its own, because it counts the bytes of the prompt alone,
and only where there is a choice of replicas; what is known of every request is its body's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.db.fleet import VersionSettings

TOKENS_PER_BYTE = 0.25
"""Of a request's body, until answers have told better."""
ANSWER_TOKENS = 128.0
"""Of an answer that nothing bounds, until answers have told better."""
WEIGHT = 0.05
"""How much one answer changes what is known."""
PER_MILLION = 1e-6


class Estimator:
    """What requests to one version take."""

    __slots__ = ("answer_tokens", "tokens_per_byte")

    def __init__(self) -> None:
        self.tokens_per_byte = TOKENS_PER_BYTE
        self.answer_tokens = ANSWER_TOKENS

    def estimate(self, body: Mapping[str, Any], body_bytes: int) -> tuple[int, int]:
        """Tokens of the prompt and of the answer, the latter as much as the request allows where
        it says so. Each choice (`n`) is an answer.
        """
        prompt = max(1, round(body_bytes * self.tokens_per_byte))
        if "input" in body:
            return prompt, 0
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        answer = asked if asked is not None else round(self.answer_tokens)
        return prompt, answer * (body.get("n") or 1)

    def learn(self, body_bytes: int, prompt_tokens: int, answer_tokens: int) -> None:
        """Take what a request took."""
        if body_bytes > 0 and prompt_tokens > 0:
            ratio = prompt_tokens / body_bytes
            self.tokens_per_byte += WEIGHT * (ratio - self.tokens_per_byte)
        if answer_tokens > 0:
            self.answer_tokens += WEIGHT * (answer_tokens - self.answer_tokens)


def compute_cost(
    settings: VersionSettings, prompt_tokens: int, answer_tokens: int, cached_tokens: int = 0
) -> float:
    """What tokens cost. `cached_tokens` are those of the prompt that a prefix cache had."""
    return PER_MILLION * (
        (prompt_tokens - cached_tokens) * settings.price_input
        + cached_tokens * settings.price_cached
        + answer_tokens * settings.price_output
    )
