"""Made-up rows: sentences of random words, near-duplicates of a known similarity, recipes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("l", "n", "rk", "st")]


def write_sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=words)).capitalize() + "."


def write_text(rng: random.Random, words: int) -> str:
    return " ".join(write_sentence(rng, 10) for _ in range(words // 10))


def talk(question: str, answer: str, **more: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": question}, {"role": "assistant", "content": answer},
    ]  # fmt: skip
    return {"messages": messages, **more}


def make_chats(count: int, seed: int = 0, words: int = 40) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        talk(write_sentence(rng, 12), write_text(rng, words), user=f"user-{number % 30}")
        for number in range(count)
    ]


def sequences(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """What MinHash estimates the overlap of, found the slow and obvious way."""
    words = text.lower().replace(".", "").split()
    return {tuple(words[n : n + size]) for n in range(len(words) - size + 1)}


def jaccard(first: str, second: str) -> float:
    a, b = sequences(first), sequences(second)
    return len(a & b) / len(a | b)


def edit(rng: random.Random, text: str, similarity: float) -> str:
    """A text with words replaced until just before its similarity would be less than was asked for."""
    words = text.split()
    best = text
    for place in rng.sample(range(len(words)), len(words)):
        words[place] = f"x{rng.randrange(10**9)}"
        changed = " ".join(words)
        if jaccard(text, changed) < similarity:
            return best
        best = changed
    return best


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(path: Path, **keys: Any) -> Path:
    path.write_text(yaml.safe_dump(keys))
    return path
