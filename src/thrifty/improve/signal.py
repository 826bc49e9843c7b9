"""Whether feedback says anything: can a few properties of answers tell liked from disliked ones?

A linear model of an answer's length, form and words learns from four fifths of the prompts which
answers were liked, and is asked about the last fifth, in turns. If it tells them apart more often
than chance does, the feedback holds something that carries over to other prompts. If it does not,
the feedback may be random, or be about what such a model cannot see, such as facts; then what was
trained has to show it on held-out rows (`steps.train`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDS = 5
WORD_BUCKETS = 256
WORD_WEIGHT = 0.5
"""Of words beside the length and form of an answer."""
RIDGE = 0.1
"""The penalty on weights, for each row and standardized feature."""
SHUFFLES = 499
ALPHA = 0.01
"""The chance that random feedback passes for more."""
MOST_ROWS = 4000
"""So many are enough; of more, these are taken evenly."""
OPENING_WORDS = 8
WORDS = re.compile(r"\w+")
END = re.compile(r"[.!?\u3002\uff01\uff1f]['\")\]]?$")
LIST_LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Signal:
    """What share of liked answers is told from disliked ones, and how likely that is by chance."""

    rows: int
    told: float
    chance: float
    """The share of shuffled judgements that are told apart as well."""

    @property
    def found(self) -> bool:
        """Whether it is more than chance."""
        return self.chance < ALPHA

    def __str__(self) -> str:
        return (
            f"by length, form and words, liked answers are told from disliked ones in {self.told:.0%} "
            f"of the cases, of {self.rows:,} rows (by chance with a probability of {self.chance:.2g})"
        )


def find_signal(rows: Sequence[Mapping[str, Any]]) -> Signal | None:
    """What judged answers hold, as rows for KTO; None where there are too few of them."""
    some = [rows[number] for number in _spread(len(rows))]
    prompts = [_read_last(row["prompt"]) for row in some]
    folds = np.array([_find_fold(prompt) for prompt in prompts])
    liked = np.array([bool(row["label"]) for row in some])
    if len(set(folds.tolist())) < FOLDS or liked.all() or not liked.any():
        return None
    features = np.array(
        [
            describe(prompt, _read_last(row["completion"]))
            for prompt, row in zip(prompts, some, strict=True)
        ]
    )
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(liked) for _ in range(SHUFFLES)]
    columns = np.stack([liked, *shuffled], axis=1)
    told, compared = np.zeros(SHUFFLES + 1), np.zeros(SHUFFLES + 1)
    for fold in range(FOLDS):
        apart = folds == fold
        scores = _predict(features, columns, apart)
        more, cases = _count_told(scores, columns[apart])
        told, compared = told + more, compared + cases
    shares = told / np.maximum(compared, 1)
    return Signal(len(some), float(shares[0]), float((shares >= shares[0]).mean()))


def _spread(count: int) -> list[int]:
    return [int(one) for one in np.linspace(0, count - 1, min(count, MOST_ROWS))]


def _predict(features: Matrix, liked: Any, apart: Any) -> Matrix:
    """What ridge regressions on the other rows say of those apart, [rows, columns], for each column
    of `liked` [all rows, columns].
    """
    x, y = features[~apart], liked[~apart].astype(np.float64)
    middle, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = np.inf
    scale[-WORD_BUCKETS:] /= WORD_WEIGHT
    x = (x - middle) / scale
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (y - y.mean(axis=0)))
    found: Matrix = ((features[apart] - middle) / scale) @ weights
    return found


def _count_told(scores: Matrix, liked: Any) -> tuple[Matrix, Matrix]:
    """In how many pairs of a liked and a disliked answer the liked one scores higher, and how many
    there are, [columns]: the statistic of Mann and Whitney. Equal scores count by their order.
    """
    ranks = scores.argsort(axis=0).argsort(axis=0) + 1
    up = liked.sum(axis=0)
    wins = np.where(liked, ranks, 0).sum(axis=0) - up * (up + 1) / 2
    return wins, up * (len(liked) - up).astype(np.float64)


def describe(prompt: str, answer: str) -> Matrix:
    """Properties of an answer: its length and form, then its words, hashed."""
    words = [word.lower() for word in WORDS.findall(answer)]
    asked = {word.lower() for word in WORDS.findall(prompt)}
    count = max(1, len(words))
    opening = words[:OPENING_WORDS]
    form = [
        math.log1p(len(words)),
        math.log1p(len(answer)),
        len("".join(words)) / count,
        len(set(words)) / count,
        math.log1p(answer.strip().count("\n")),
        math.log1p(len(LIST_LINE.findall(answer))),
        float(END.search(answer.rstrip()) is not None),
        answer.count("?") / count,
        answer.count(",") / count,
        sum(word.isdigit() for word in words) / count,
        sum(word in asked for word in words) / count,
        sum(word in asked for word in opening) / max(1, len(opening)),
    ]
    buckets = np.zeros(WORD_BUCKETS)
    for word in set(words):
        digest = blake2b(word.encode(), digest_size=4, person=b"word").digest()
        buckets[int.from_bytes(digest, "big") % WORD_BUCKETS] += 1
    return np.concatenate([form, np.sqrt(buckets)])


def _find_fold(prompt: str) -> int:
    digest = blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=4, person=b"signal")
    return int.from_bytes(digest.digest(), "big") % FOLDS


def _read_last(messages: Any) -> str:
    """The text of the last message, or the text itself."""
    if isinstance(messages, str):
        return messages
    return str(messages[-1].get("content") or "") if messages else ""
