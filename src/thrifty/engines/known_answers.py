"""The known-answer test that a replica has to pass before it is ready.

When a model is prepared, a few prompts are run in float32 arithmetic that is right on every
processor, and the answers are stored beside the graph (`known_answers.json`). When a replica starts,
it answers the same prompts as it serves. A processor, a kernel or a damaged file that makes answers
wrong is found before the first request. Imports no OpenVINO.

    decoders    the next token behind each prompt, and its log-probability
    encoders    the embedding of each prompt
    rerankers   the logit of each prompt with the next one
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from thrifty.errors import IntegrityError
from thrifty.files import write_atomically
from thrifty.text.tokenizer import TextTokenizer

FILE = "known_answers.json"
TEXTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "Water boils at a temperature of one hundred degrees",
    "def add(a, b):\n    return a +",
    "1, 2, 3, 4, 5, 6, 7,",
    "Once upon a time, in a small village near the sea, there lived",
    "Monday, Tuesday, Wednesday, Thursday,",
    "The opposite of hot is cold, and the opposite of big is",
    "Dear Sir or Madam, I am writing to you because",
)
"""Texts of several kinds, which between them exercise most inputs of a model."""
PAIRS = tuple(zip(TEXTS, (*TEXTS[1:], TEXTS[0]), strict=True))
"""Each text with the next one, for rerankers."""
MOST_TOKENS = 24
"""Of each text at most so many tokens are used: all take little of the time of a start."""
TOP = 16
"""So many of the likeliest next tokens are stored."""
TOLERANCE = 1.0
"""Nats: the most by which next tokens may differ from the known answers on average.

Measured on SmolLM2 135M in every form of weights, with bfloat16, float32 and 8-bit activations, at
every level from AVX2 to AMX: at most 0.05, with static activations 0.1. Models of random weights,
whose logits are larger, differ by up to 0.6 and must start, too. Damaged weights differ by several
nats, and saturated sums by up to 1.3, but by as little as 0.11 in a model whose weights are mostly
small: those are found by the features that a scheme needs, and by `exact_sums.py`.
"""
LOGIT_TOLERANCE = 1.0
"""The most by which a reranker's logits, which are log-odds, may differ from the known ones on average."""
LEAST_COSINE = 0.9
"""The least that an embedding may agree with its known answer on average."""


class KnownToken(msgspec.Struct, frozen=True):
    """A prompt, and what follows it most likely."""

    prompt: list[int]
    tokens: list[int]
    """The `TOP` likeliest next tokens, the likeliest first."""
    logprobs: list[float]


class KnownEmbedding(msgspec.Struct, frozen=True):
    """A text, and its embedding."""

    prompt: list[int]
    embedding: list[float]


class KnownLogit(msgspec.Struct, frozen=True):
    """A query and a document as one sequence of tokens, and how relevant a reranker finds it."""

    pair: list[int]
    document_at: int
    """Where the document's segment begins."""
    logit: float


class KnownAnswers(msgspec.Struct, frozen=True):
    """All known answers of a model: a decoder has `tokens`, an encoder `embeddings`, a reranker
    `logits`.
    """

    tokens: list[KnownToken] = []
    embeddings: list[KnownEmbedding] = []
    logits: list[KnownLogit] = []


def list_known_pairs(tokenizer: TextTokenizer, most: int) -> list[tuple[list[int], int]]:
    """`PAIRS` as at most `most` tokens, and where the second text's segment begins."""
    pairs = []
    for first, second in PAIRS:
        (pair,) = tokenizer.encode_pairs(first, [second])
        pairs.append((pair.ids[:most], min(most, pair.second_at)))
    return pairs


def read_known_answers(folder: Path) -> KnownAnswers | None:
    """The known answers of the model in `folder`; None where it has none, as older models do.

    Raises `IntegrityError`.
    """
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=KnownAnswers)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise IntegrityError(
            f"{folder / FILE} is damaged: {error}; prepare the model anew"
        ) from None


def write_known_answers(folder: Path, known: KnownAnswers) -> None:
    """Write them into `folder`."""
    write_atomically(folder / FILE, msgspec.json.encode(known))


def measure_difference(known: Sequence[KnownToken], chosen: Sequence[tuple[int, float]]) -> float:
    """How far next tokens are from the known answers, in nats on average over prompts.

    Args:
        known: The known answers.
        chosen: For each, the token that was chosen greedily, and its log-probability.

    For one prompt it is how much less likely the chosen token is than the likeliest one by the known
    answer, or how far its log-probability is from the known one, whichever is more. Of a token that
    is not among the known ones, the last of these is taken in its place, which is less.
    """
    total = 0.0
    for answer, (token, logprob) in zip(known, chosen, strict=True):
        if not math.isfinite(logprob):
            return math.inf
        place = answer.tokens.index(token) if token in answer.tokens else -1
        expected = answer.logprobs[place]
        off = abs(logprob - expected) if place >= 0 else max(0.0, logprob - expected)
        total += max(answer.logprobs[0] - expected, off)
    return total / len(known)


def judge_tokens(known: Sequence[KnownToken], chosen: Sequence[tuple[int, float]]) -> str | None:
    """Why the next tokens that were `chosen` are not those of this model; None if they are."""
    found = measure_difference(known, chosen)
    if found <= TOLERANCE:
        return None
    return _describe(f"its next tokens differ by {found:.2f} nats, more than {TOLERANCE:g},")


def judge_embeddings(
    known: Sequence[KnownEmbedding], found: Sequence[Sequence[float]]
) -> str | None:
    """Why embeddings are not those of this model; None if they are."""
    cosine = sum(_cosine(a.embedding, b) for a, b in zip(known, found, strict=True)) / len(known)
    if cosine >= LEAST_COSINE:
        return None
    return _describe(f"its embeddings agree by {cosine:.3f}, less than {LEAST_COSINE:g},")


def judge_logits(known: Sequence[KnownLogit], found: Sequence[float]) -> str | None:
    """Why logits are not those of this model; None if they are."""
    off = sum(abs(a.logit - b) for a, b in zip(known, found, strict=True)) / len(known)
    if off <= LOGIT_TOLERANCE:
        return None
    return _describe(f"its logits differ by {off:.2f}, more than {LOGIT_TOLERANCE:g},")


def _describe(difference: str) -> str:
    return (
        f"{difference} with the known answers that were stored when the model was prepared; this "
        "processor computes it wrongly, or its files are not what they were. Prepare it anew on "
        "this machine, or take another form of its weights (compress: int8)"
    )


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    size = math.hypot(*a) * math.hypot(*b)
    if len(a) != len(b) or not size or not math.isfinite(size):
        return 0.0
    return sum(x * y for x, y in zip(a, b, strict=True)) / size
