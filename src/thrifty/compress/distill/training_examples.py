"""What a student learns from: windows of text, and what a teacher says of each.

A teacher's words are kept beforehand (`CachedExamples`), are asked for while training (`LiveExamples`), or are the
text itself (`TextExamples`: what a teacher wrote that gives nothing but text, or any text).
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
"""Windows that short texts are still put into."""


@dataclass(frozen=True)
class TrainingExample:
    """One window of T tokens, and so T - 1 predictions."""

    tokens: TokenArray
    counts: npt.NDArray[np.bool_]
    """Which predictions are learned from, [T - 1]."""
    positions: TokenArray | None = None
    """[T], where several texts share the window: each begins at 0, and sees itself alone."""
    ids: TokenArray | None = None
    """The teacher's k likeliest tokens, [T - 1, k]; None: nobody says anything."""
    logprobs: Logprobs | None = None
    """Theirs, [T - 1, k]."""
    tail: Logprobs | None = None
    """The mass of the others, [T - 1]."""
    hidden: Any = None
    """The teacher's hidden states, [layers + 1, T, channels], where they are asked for."""


class TrainingExamples(Protocol):
    """Windows of one length, by number."""

    count: int
    window: int
    taught: bool
    """Whether a teacher says more than the text."""

    def read(self, number: int) -> TrainingExample:
        """One window."""
        ...

    def text(self, number: int) -> TokenArray:
        """One window's tokens."""
        ...

    def ask(self, tokens: TokenArray, first: int) -> TrainingExample:
        """What the teacher says of other text, of which predictions from `first` on count. Raises
        `CompressionError` where it cannot be asked.
        """
        ...


class CachedExamples:
    """What a teacher said once, and was kept."""

    taught = True

    def __init__(self, record: ReferenceRecord) -> None:
        self._record = record
        self.window = record.meta.window
        # A shorter rest at the end is left out, so that windows can be computed together.
        self.count = int((record.lengths == self.window).sum())

    def read(self, number: int) -> TrainingExample:
        """See `TrainingExamples`."""
        found = next(self._record.read(number))
        return TrainingExample(
            found.tokens, np.ones(len(found.tokens) - 1, np.bool_), ids=found.ids,
            logprobs=found.logprobs, tail=found.tail,
        )  # fmt: skip

    def text(self, number: int) -> TokenArray:
        """See `TrainingExamples`."""
        return next(self._record.read(number)).tokens

    def ask(self, tokens: TokenArray, first: int) -> TrainingExample:
        """See `TrainingExamples`."""
        raise CompressionError("the teacher's words were kept beforehand; it is not at hand")


class LiveExamples:
    """A teacher that is asked while the student learns."""

    taught = True

    def __init__(
        self, teacher: Scorer, windows: npt.NDArray[np.uint32], k: int, *, hidden: bool = False
    ) -> None:
        """`windows` is [count, window]; with `hidden`, the teacher tells its hidden states, which one
        on PyTorch can.
        """
        self._teacher: Any = teacher
        self._windows = windows
        self._k = min(k, teacher.vocab_size)
        self._hidden = hidden
        self.count, self.window = windows.shape

    def read(self, number: int) -> TrainingExample:
        """See `TrainingExamples`."""
        return self.ask(self.text(number), 0)

    def text(self, number: int) -> TokenArray:
        """See `TrainingExamples`."""
        tokens: TokenArray = self._windows[number].astype(np.int64)
        return tokens

    def ask(self, tokens: TokenArray, first: int) -> TrainingExample:
        """See `TrainingExamples`."""
        hidden = None
        if self._hidden:
            ranked, hidden = self._teacher.rank_with_hidden(tokens, self._k)
        else:
            ranked = self._teacher.rank(tokens, self._k, ())
        mass = np.exp(ranked.logprobs.astype(np.float64)).sum(axis=1)
        tail = np.maximum(0.0, 1.0 - mass).astype(np.float32)
        counts = np.arange(len(tokens) - 1) >= first
        return TrainingExample(
            tokens, counts, ids=ranked.ids, logprobs=ranked.logprobs, tail=tail, hidden=hidden
        )


class TextExamples:
    """Text alone, several short ones to a window. `firsts` says how much of each is a prompt, which
    nothing is learned from.
    """

    taught = False

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
        counts = [
            each >= self._firsts[index]
            for index, each in zip(self._packs[number], positions, strict=True)
        ]
        for each in counts:
            each[-1] = False  # What comes behind a text's end is another text.
        return TrainingExample(
            np.concatenate(texts), np.concatenate(counts)[:-1], np.concatenate(positions)
        )

    def text(self, number: int) -> TokenArray:
        """See `TrainingExamples`."""
        return self.read(number).tokens

    def ask(self, tokens: TokenArray, first: int) -> TrainingExample:
        """See `TrainingExamples`."""
        raise CompressionError("there is no teacher at hand, only text")


def pack(lengths: Sequence[int], window: int) -> list[list[int]]:
    """Numbers of texts that share a window: each goes to the first of the last few that has room, so that
    what came early stays early. One that is longer has a window to itself.
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
