"""What the pretend users like, which nothing in their questions or in the service tells.

They like short, direct answers that end: of about ten words, without a preamble that repeats the
question, without lists. A thumb is drawn from the chance that an answer is liked, so that users
contradict themselves. `prefer` is the judge: it agrees with these preferences in `ACCURACY` of the
comparisons, and says the opposite in the others.
"""

from __future__ import annotations

import math
from hashlib import blake2b

ACCURACY = 0.8
"""Of the judge."""
NOISE = 0.04
"""Thumbs that have nothing to do with the answer, on either side."""
WORDS = 10
FULL_STOPS = (".", "!", '."', ".)")


def rate(question: str, answer: str) -> float:
    """How much an answer is liked, in log-odds."""
    words = answer.split()
    if not words:
        return -6.0
    score = 3.5 - 0.12 * max(0, len(words) - WORDS)
    if "\n" in answer.strip():
        score -= 1.5
    if not answer.rstrip().endswith(FULL_STOPS):
        score -= 1.0
    asked = {word.strip("?,.'\"").lower() for word in question.split()}
    opening = [word.strip("?,.'\"").lower() for word in words[:6]]
    if sum(word in asked for word in opening) >= 5:
        score -= 0.5
    return score


def chance_of_like(question: str, answer: str) -> float:
    """The chance that a user gives a thumb up."""
    return NOISE + (1 - 2 * NOISE) / (1 + math.exp(-rate(question, answer)))


def prefer(prompt: str, first: str, second: str) -> int:
    """The judge of the release: 1 where it finds the first answer better, -1 where the second one."""
    question = prompt.rpartition("user: ")[2]
    better = rate(question, first) - rate(question, second)
    # By the texts alone, so that it says the same of a pair in either order.
    seed = "\0".join([prompt, *sorted((first, second))])
    drawn = int.from_bytes(blake2b(seed.encode(), digest_size=8).digest(), "big") / 2**64
    sign = 1 if better > 0 else -1 if better < 0 else 0
    return sign if drawn < ACCURACY else -sign
