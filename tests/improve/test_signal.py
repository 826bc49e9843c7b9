"""Whether feedback says anything: what carries over to other prompts is found, random likes are not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from thrifty.improve.signal import Signal, find_signal
from thrifty.improve.steps import _require_evidence
from thrifty.improve.turn import TurnEnds

WORDS = [
    "river",
    "stone",
    "maple",
    "cloud",
    "copper",
    "engine",
    "violin",
    "harbor",
    "candle",
    "meadow",
]


def write_answer(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)) + rng.choice([".", "", "!"])


def make_rows(count: int, seed: int, *, shorter: float) -> list[dict[str, Any]]:
    """Two judged answers to each prompt; with the chance `shorter`, the shorter one was liked."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        short, long = (
            write_answer(rng, rng.randrange(4, 12)),
            write_answer(rng, rng.randrange(9, 30)),
        )
        liked = rng.random() < shorter
        prompt = [{"role": "user", "content": f"What is {number} of {rng.choice(WORDS)}?"}]
        for text, label in ((short, liked), (long, not liked)):
            said = [{"role": "assistant", "content": text}]
            rows.append({"prompt": prompt, "completion": said, "label": label})
    return rows


def test_a_preference_is_found_and_random_likes_are_not() -> None:
    def find(shorter: float, seed: int) -> Signal:
        found = find_signal(make_rows(100, seed, shorter=shorter))
        assert found is not None
        return found

    liked = find(0.8, 0)
    assert liked.found
    assert liked.told > 0.6
    assert "by chance" in str(liked)
    random_likes = [find(0.5, seed) for seed in range(20)]
    assert sum(one.found for one in random_likes) <= 2
    assert find(0.8, 0) == liked, "the same rows give the same figures"


def test_too_little_says_nothing() -> None:
    assert find_signal([]) is None
    assert find_signal(make_rows(2, 0, shorter=1.0)) is None
    one_kind = [row | {"label": True} for row in make_rows(50, 0, shorter=1.0)]
    assert find_signal(one_kind) is None


def test_evidence_is_asked_of_what_was_trained_where_the_feedback_shows_none() -> None:
    def details(preferred: float) -> dict[str, Any]:
        return {"preferred": {"after": preferred}, "by_chance": {"after": 0.1}}

    unclear = {"told": 0.51, "found": False}
    with pytest.raises(TurnEnds, match="the feedback looks random"):
        _require_evidence(unclear, details(0.6))
    _require_evidence(unclear, details(0.7))
    _require_evidence({"told": 0.7, "found": True}, details(0.4))
    _require_evidence(None, details(0.4))
    _require_evidence(unclear, {})
