"""The requests of a load test.

Prompts consist of common words, each about one token; the real number of tokens is read from the
responses. The same seed produces the same requests.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from thrifty.errors import BenchError

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
    "but",
    "at",
    "are",
    "this",
    "have",
    "from",
    "or",
    "had",
    "an",
    "they",
    "which",
    "one",
    "you",
    "were",
    "all",
    "her",
    "she",
    "there",
    "would",
    "their",
    "we",
    "him",
    "been",
    "has",
    "when",
    "who",
    "will",
    "no",
    "more",
    "if",
    "out",
    "so",
    "up",
    "said",
    "what",
    "its",
    "about",
    "than",
    "into",
    "them",
    "can",
    "only",
    "other",
    "time",
    "new",
    "some",
    "could",
    "these",
    "two",
    "may",
    "first",
    "then",
    "do",
    "any",
    "like",
    "my",
    "now",
    "over",
    "such",
    "our",
    "man",
    "me",
    "even",
    "most",
    "made",
    "after",
    "also",
    "did",
    "many",
    "off",
    "before",
    "must",
    "well",
    "back",
    "through",
    "years",
    "where",
    "much",
    "your",
    "way",
    "down",
    "should",
    "because",
    "long",
    "each",
    "just",
    "state",
    "people",
    "those",
    "too",
    "little",
    "good",
    "world",
    "make",
    "very",
    "year",
    "still",
    "see",
    "own",
    "work",
    "men",
    "day",
    "get",
    "here",
    "old",
    "life",
    "both",
    "between",
    "being",
    "under",
    "three",
    "never",
    "know",
    "same",
    "last",
    "while",
    "us",
    "might",
    "great",
    "high",
    "another",
    "since",
    "house",
    "against",
    "right",
    "use",
    "came",
    "take",
    "part",
    "place",
    "again",
    "around",
    "however",
    "home",
    "small",
    "found",
    "thought",
    "went",
    "say",
    "general",
    "once",
    "upon",
    "school",
    "every",
    "does",
    "got",
    "united",
    "left",
    "number",
    "course",
    "war",
    "until",
    "always",
    "away",
    "something",
    "fact",
    "water",
    "less",
    "public",
    "put",
    "think",
    "almost",
    "hand",
    "enough",
    "far",
    "took",
    "head",
    "yet",
    "government",
    "system",
    "set",
    "better",
    "told",
    "nothing",
    "night",
    "end",
    "why",
    "find",
    "look",
    "going",
    "point",
    "knew",
    "next",
]

COPY_BEGINS = 0.15
"""The share of a prompt in which it repeats its beginning, where an answer is to copy it."""
MAX_REMEMBERED = 10_000
"""How many prompts are kept for repetition."""


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens."""

    kind: str
    low: float
    high: float

    def draw(self, rng: random.Random) -> int:
        """One length, at least 1."""
        if self.kind == "fixed":
            value = self.low
        elif self.kind == "uniform":
            value = rng.uniform(self.low, self.high)
        elif self.kind == "normal":
            value = rng.gauss(self.low, self.high)
        else:
            value = rng.lognormvariate(0.0, self.high) * self.low
        return max(1, round(value))


def parse_lengths(text: str) -> Lengths:
    """Parse `128`, `uniform:64-256`, `normal:128,30` (mean, standard deviation) or
    `lognormal:128,0.5` (median, sigma). Raises `BenchError`.
    """
    kind, _, rest = text.partition(":")
    try:
        if not rest:
            return Lengths("fixed", float(kind), 0)
        if kind == "uniform":
            low, high = (float(part) for part in rest.split("-"))
            if low > high:
                raise ValueError
            return Lengths(kind, low, high)
        if kind in ("normal", "lognormal"):
            low, high = (float(part) for part in rest.split(","))
            return Lengths(kind, low, high)
    except ValueError:
        pass
    raise BenchError(
        f"{text!r} is not a length; write 128, uniform:64-256, normal:128,30 or lognormal:128,0.5"
    )


@dataclass(frozen=True)
class PlannedRequest:
    """One request to send. `at_s` is its time in a trace; 0 otherwise."""

    prompt: str
    max_tokens: int
    at_s: float = 0.0


@dataclass(frozen=True)
class Workload:
    """A distribution of requests.

    `prefix_share` is the part of each prompt that comes from one of `prefixes` shared prefixes.
    `repeat_share` is the probability that a request exactly repeats an earlier one. `copy_share` is
    the probability that a prompt begins to repeat itself near its end, which has language models go
    on to copy it, as they do in edits and quotations.
    """

    prompt: Lengths = field(default_factory=lambda: Lengths("fixed", 128, 0))
    output: Lengths = field(default_factory=lambda: Lengths("fixed", 64, 0))
    prefix_share: float = 0.0
    prefixes: int = 1
    repeat_share: float = 0.0
    seed: int = 0
    copy_share: float = 0.0

    def requests(self, level: str = "") -> Iterator[PlannedRequest]:
        """Yield requests without end. Each `level` has its own prompts and shared prefixes, so that
        one level of load does not warm the caches for another.
        """
        rng = random.Random(f"{self.seed}/{level}")
        beginnings = [
            random.Random(f"{self.seed}/{level}/prefix/{index}").choices(WORDS, k=4096)
            for index in range(self.prefixes)
        ]
        past: list[PlannedRequest] = []
        while True:
            if past and rng.random() < self.repeat_share:
                yield rng.choice(past)
                continue
            length = self.prompt.draw(rng)
            shared = round(length * self.prefix_share)
            words = rng.choice(beginnings)[:shared] + rng.choices(WORDS, k=length - shared)
            if rng.random() < self.copy_share:
                again = math.ceil(length * COPY_BEGINS)
                words = [*words[: length - again], *words[:again]]
            request = PlannedRequest(" ".join(words), self.output.draw(rng))
            if len(past) < MAX_REMEMBERED:
                past.append(request)
            yield request


def read_trace(path: Path, seed: int = 0) -> list[PlannedRequest]:
    """Read requests from a file of JSON lines.

    Each line has `at_s` (seconds from the start), `prompt` or `prompt_tokens`, and `max_tokens` (or
    `output_tokens`). Raises `BenchError` with the line at fault.
    """
    rng = random.Random(f"{seed}/trace")
    requests = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"the trace {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            prompt = item.get("prompt") or " ".join(
                rng.choices(WORDS, k=int(item["prompt_tokens"]))
            )
            limit = int(item.get("max_tokens") or item["output_tokens"])
            requests.append(PlannedRequest(prompt, limit, float(item["at_s"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchError(
                f"{path}, line {number}: {error!r}; each line needs at_s, prompt or prompt_tokens, "
                "and max_tokens"
            ) from None
    if not requests:
        raise BenchError(f"the trace {path} is empty")
    return sorted(requests, key=lambda request: request.at_s)
