"""Training examples: windows of one or more texts of the same domain, and a teacher's predictions.

The predictions are recorded beforehand (`RecordedPieces`), asked for during training (`LinePieces`
with a live teacher), or absent (`LinePieces` alone: text that a served teacher generated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thrifty.errors import CompressionError
from thrifty.evaluate.reference import ReferenceRecord
from thrifty.evaluate.scorer import Logprobs, Ranker
from thrifty.evaluate.windows import BoolArray, TokenArray, TokenWindow

OPEN_PACKS = 16
"""How many open windows short texts are packed into."""


@dataclass(frozen=True)
class TrainingExample:
    """One window of T tokens, hence T - 1 predictions."""

    tokens: TokenArray
    loss_mask: npt.NDArray[np.bool_]
    """Which predictions to learn from, [T - 1]."""
    positions: TokenArray | None = None
    """[T], if several texts share the window: each restarts at 0 and attends only to itself."""
    ids: TokenArray | None = None
    """The teacher's k likeliest tokens, [T - 1, k]; None without a teacher."""
    logprobs: Logprobs | None = None
    """Their log-probabilities, [T - 1, k]."""
    tail: Logprobs | None = None
    """The probability mass of all other tokens, [T - 1]."""
    hidden: Any = None
    """The teacher's hidden states, [layers + 1, T, channels], if they are used."""


class Pieces(Protocol):
    """Texts of one domain, accessed by number."""

    @property
    def lengths(self) -> Sequence[int]:
        """The tokens of each."""
        ...

    @property
    def counts(self) -> Sequence[int]:
        """How many predictions of each count."""
        ...

    def read(self, number: int) -> TrainingExample:
        """One text, with the teacher's predictions if there is one."""
        ...


class RecordedPieces:
    """Texts with a teacher's predictions that were recorded beforehand."""

    def __init__(self, record: ReferenceRecord) -> None:
        self._record = record
        self.lengths = [int(length) for length in record.lengths]
        ends = np.cumsum(record.lengths - 1)
        counted = record.counted if record.windows else np.zeros(0, np.bool_)
        before = np.concatenate([[0], np.cumsum(counted)])
        self.counts = np.diff(before[ends], prepend=0).tolist()

    def read(self, number: int) -> TrainingExample:
        """See `Pieces`."""
        found = next(self._record.read(number))
        return TrainingExample(
            found.tokens,
            found.counted.copy(),
            ids=found.ids,
            logprobs=found.logprobs,
            tail=found.tail,
        )


class LiveTeacher:
    """A teacher that is queried during training."""

    def __init__(self, teacher: Ranker, k: int, *, hidden: bool = False) -> None:
        """`hidden` adds the teacher's hidden states, which needs PyTorch."""
        self._teacher: Any = teacher
        self._k = min(k, teacher.vocab_size)
        self._hidden = hidden

    def query(self, tokens: TokenArray, counted: BoolArray) -> TrainingExample:
        """The teacher's predictions, to learn from those that are `counted`."""
        hidden = None
        if self._hidden:
            ranked, hidden = self._teacher.rank_with_hidden(tokens, self._k)
        else:
            ranked = self._teacher.rank(tokens, self._k, ())
        mass = np.exp(ranked.logprobs.astype(np.float64)).sum(axis=1)
        tail = np.maximum(0.0, 1.0 - mass).astype(np.float32)
        return TrainingExample(
            tokens, counted, ids=ranked.ids, logprobs=ranked.logprobs, tail=tail, hidden=hidden
        )


class LinePieces:
    """Texts, and which of their predictions to learn from; the others belong to prompts."""

    def __init__(self, texts: Sequence[TokenWindow], teacher: LiveTeacher | None = None) -> None:
        self._texts = texts
        self._teacher = teacher
        self.lengths = [len(one.tokens) for one in texts]
        self.counts = [int(one.counted.sum()) for one in texts]

    def read(self, number: int) -> TrainingExample:
        """See `Pieces`."""
        text = self._texts[number]
        if self._teacher is not None:
            return self._teacher.query(text.tokens, text.counted)
        return TrainingExample(text.tokens, text.counted)

    def text(self, number: int) -> TokenWindow:
        """One text; the teacher is not asked."""
        return self._texts[number]


@dataclass(frozen=True)
class Part:
    """The texts of one domain."""

    domain: str
    pieces: Pieces
    ends: Sequence[int] = field(default_factory=list)
    """How many of the texts were there when the examples were extended, each time. Texts share a
    window only with others of the same time, so that examples keep their numbers."""


class TrainingExamples:
    """Windows of at most `window` tokens, accessed by number. Each holds texts of one domain."""

    def __init__(
        self,
        parts: Sequence[Part],
        window: int,
        *,
        has_teacher: bool,
        live: LiveTeacher | None = None,
    ) -> None:
        self.window = window
        self.has_teacher = has_teacher
        """Whether there are a teacher's predictions besides the text."""
        self.live = live
        """Asked while the student learns."""
        self._parts = parts
        self._packs: list[tuple[Part, list[int]]] = []
        ends = [list(part.ends) or [len(part.pieces.lengths)] for part in parts]
        for turn in range(max(map(len, ends), default=0)):
            for part, each in zip(parts, ends, strict=True):
                begin, end = (each[turn - 1] if turn else 0), each[turn]
                packs = pack(part.pieces.lengths[begin:end], window)
                self._packs += [(part, [begin + number for number in one]) for one in packs]
        self.count = len(self._packs)
        self._token_weights = {part.domain: self._weigh_token(part) for part in parts}

    def _weigh_token(self, part: Part) -> float:
        own = [number for number, (one, _) in enumerate(self._packs) if one is part]
        return len(own) / max(1, sum(map(self.count_learned, own)))

    def count_learned(self, number: int) -> int:
        """How many predictions of one window are learned from."""
        part, texts = self._packs[number]
        return sum(part.pieces.counts[text] for text in texts)

    def weigh(self, number: int, *, first: bool = False) -> float:
        """The weight of one window, or of its first text: the predictions that are learned from,
        relative to the mean of the domain's windows. Each of them so weighs the same in a domain,
        and each domain as much as it has windows, which is its share of the mix.
        """
        part, texts = self._packs[number]
        count = part.pieces.counts[texts[0]] if first else self.count_learned(number)
        return count * self._token_weights[part.domain]

    def domain(self, number: int) -> str:
        """The domain of one window."""
        return self._packs[number][0].domain

    def choose_held_out(self, tokens: int, share: float) -> list[int]:
        """Windows to evaluate on: the first of each domain, `tokens` over all domains, and at most
        `share` of each domain's first windows; at least one over all.
        """
        wanted = max(1, -(-tokens // (self.window * len(self._parts))))
        chosen: list[int] = []
        largest: list[int] = []
        for part in self._parts:
            end = part.ends[0] if part.ends else len(part.pieces.lengths)
            own = [
                n for n, (one, texts) in enumerate(self._packs) if one is part and texts[0] < end
            ]
            chosen += own[: min(wanted, int(len(own) * share))]
            largest = max(largest, own, key=len)
        return chosen or largest[:1]

    def read(self, number: int) -> TrainingExample:
        """One window."""
        part, texts = self._packs[number]
        return join([part.pieces.read(text) for text in texts])

    def text(self, number: int) -> TokenWindow:
        """One window's first text."""
        part, texts = self._packs[number]
        if isinstance(part.pieces, LinePieces):
            return part.pieces.text(texts[0])
        found = part.pieces.read(texts[0])
        return TokenWindow(found.tokens, found.loss_mask)

    def query_teacher(self, tokens: TokenArray, counted: BoolArray) -> TrainingExample:
        """The teacher's predictions on other text, to learn from those that are `counted`.

        Raises `CompressionError` if the teacher cannot be queried.
        """
        if self.live is None:
            raise CompressionError("the teacher's predictions were recorded; it cannot be queried")
        return self.live.query(tokens, counted)


def join(examples: Sequence[TrainingExample]) -> TrainingExample:
    """One window of several texts. The prediction of a text's first token counts for nothing."""
    if len(examples) == 1:
        return examples[0]
    first = examples[0]
    masks = [np.append(one.loss_mask, False) for one in examples]
    joined = TrainingExample(
        np.concatenate([one.tokens for one in examples]),
        np.concatenate(masks)[:-1],
        np.concatenate([np.arange(len(one.tokens)) for one in examples]),
    )
    if first.ids is None:
        return joined
    k = first.ids.shape[1]
    # A uniform prediction stands between texts: it does not count, but its loss must be finite.
    ids, logprobs = np.arange(k)[None], np.full((1, k), -np.log(k + 1), np.float32)
    tail = np.full(1, 1 / (k + 1), np.float32)
    known: list[Any] = [
        [part for one in examples for part in (getattr(one, name), gap)][:-1]
        for name, gap in (("ids", ids), ("logprobs", logprobs), ("tail", tail))
    ]
    joined = replace(
        joined, ids=np.concatenate(known[0]), logprobs=np.concatenate(known[1]),
        tail=np.concatenate(known[2]),
    )  # fmt: skip
    if first.hidden is None:
        return joined
    hidden = np.concatenate([np.asarray(one.hidden) for one in examples], axis=1)
    return replace(joined, hidden=hidden)


def pack(lengths: Sequence[int], window: int) -> list[list[int]]:
    """Group texts that share a window: each goes into the first recent window with enough room.

    The order is roughly preserved. A text longer than a window gets one of its own.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for number, length in enumerate(lengths):
        fitting = (
            at for at in range(max(0, len(packs) - OPEN_PACKS), len(packs)) if room[at] >= length
        )
        at = next(fitting, None)
        if at is None:
            packs.append([number])
            room.append(window - length)
        else:
            packs[at].append(number)
            room[at] -= length
    return packs
