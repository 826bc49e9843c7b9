"""Training examples: windows of text, and a teacher's predictions on each.

The predictions are recorded beforehand (`CachedExamples`), queried during training
(`LiveExamples`), or absent (`TextExamples`: text that a served teacher generated, or any text).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thrifty.errors import CompressionError
from thrifty.evaluate.reference import ReferenceRecord
from thrifty.evaluate.scorer import Logprobs, Scorer
from thrifty.evaluate.windows import TokenArray

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


class TrainingExamples(Protocol):
    """Windows of one length, accessed by number."""

    count: int
    window: int
    has_teacher: bool
    """Whether there are a teacher's predictions besides the text."""

    def read(self, number: int) -> TrainingExample:
        """One window."""
        ...

    def text(self, number: int) -> TokenArray:
        """One window's tokens."""
        ...

    def query_teacher(self, tokens: TokenArray, first: int) -> TrainingExample:
        """The teacher's predictions on other text, to learn from those from `first` on.

        Raises `CompressionError` if the teacher cannot be queried.
        """
        ...


class CachedExamples:
    """A teacher's predictions that were recorded beforehand."""

    has_teacher = True

    def __init__(self, record: ReferenceRecord) -> None:
        self._record = record
        self.window = record.meta.window
        # A shorter window at the end is left out, so that windows can be batched.
        self.count = int((record.lengths == self.window).sum())

    def read(self, number: int) -> TrainingExample:
        """See `TrainingExamples`."""
        found = next(self._record.read(number))
        return TrainingExample(
            found.tokens, found.counted, ids=found.ids, logprobs=found.logprobs, tail=found.tail
        )

    def text(self, number: int) -> TokenArray:
        """See `TrainingExamples`."""
        return next(self._record.read(number)).tokens

    def query_teacher(self, tokens: TokenArray, first: int) -> TrainingExample:
        """See `TrainingExamples`."""
        raise CompressionError("the teacher's predictions were recorded; it cannot be queried")


class LiveExamples:
    """A teacher that is queried during training."""

    has_teacher = True

    def __init__(
        self, teacher: Scorer, windows: npt.NDArray[np.uint32], k: int, *, hidden: bool = False
    ) -> None:
        """`windows` is [count, window]. `hidden` adds the teacher's hidden states, which needs
        PyTorch.
        """
        self._teacher: Any = teacher
        self._windows = windows
        self._k = min(k, teacher.vocab_size)
        self._hidden = hidden
        self.count, self.window = windows.shape

    def read(self, number: int) -> TrainingExample:
        """See `TrainingExamples`."""
        return self.query_teacher(self.text(number), 0)

    def text(self, number: int) -> TokenArray:
        """See `TrainingExamples`."""
        tokens: TokenArray = self._windows[number].astype(np.int64)
        return tokens

    def query_teacher(self, tokens: TokenArray, first: int) -> TrainingExample:
        """See `TrainingExamples`."""
        hidden = None
        if self._hidden:
            ranked, hidden = self._teacher.rank_with_hidden(tokens, self._k)
        else:
            ranked = self._teacher.rank(tokens, self._k, ())
        mass = np.exp(ranked.logprobs.astype(np.float64)).sum(axis=1)
        tail = np.maximum(0.0, 1.0 - mass).astype(np.float32)
        masks = np.arange(len(tokens) - 1) >= first
        return TrainingExample(
            tokens, masks, ids=ranked.ids, logprobs=ranked.logprobs, tail=tail, hidden=hidden
        )


class TextExamples:
    """Text without a teacher, several short texts in a window. `firsts` is the first prediction to
    learn from in each text; those before it belong to a prompt.
    """

    has_teacher = False

    def __init__(
        self, texts: Sequence[TokenArray], window: int, firsts: Sequence[int] | None = None
    ) -> None:
        self._texts = texts
        self._firsts = firsts if firsts is not None else [0] * len(texts)
        self._packs = pack([len(tokens) for tokens in texts], window)
        self.count = len(self._packs)
        self.window = window

    def read(self, number: int) -> TrainingExample:
        """See `TrainingExamples`."""
        texts = [self._texts[index] for index in self._packs[number]]
        positions = [np.arange(len(tokens)) for tokens in texts]
        masks = [
            each >= self._firsts[index]
            for index, each in zip(self._packs[number], positions, strict=True)
        ]
        for each in masks:
            each[-1] = False  # The next token belongs to another text.
        return TrainingExample(
            np.concatenate(texts), np.concatenate(masks)[:-1], np.concatenate(positions)
        )

    def text(self, number: int) -> TokenArray:
        """See `TrainingExamples`."""
        return self.read(number).tokens

    def query_teacher(self, tokens: TokenArray, first: int) -> TrainingExample:
        """See `TrainingExamples`."""
        raise CompressionError("there is only text, no teacher to query")


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
