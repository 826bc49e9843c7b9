"""What a student learns from: windows of text, and what a teacher says of each.

A teacher's words are kept beforehand (`KeptLessons`), are asked for while training (`LiveLessons`), or are the
text itself (`TextLessons`: what a teacher wrote that gives nothing but text, or any text).
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


@dataclass(frozen=True)
class Lesson:
    """One window of T tokens: T - 1 predictions, of which those before `first` do not count."""

    tokens: TokenArray
    first: int = 0
    ids: TokenArray | None = None
    """The teacher's k likeliest tokens, [T - 1, k]; None: nobody says anything."""
    logprobs: Logprobs | None = None
    """Theirs, [T - 1, k]."""
    tail: Logprobs | None = None
    """The mass of the others, [T - 1]."""
    hidden: Any = None
    """The teacher's hidden states, [layers + 1, T, channels], where they are asked for."""


class Lessons(Protocol):
    """Windows of one length, by number."""

    count: int
    window: int
    taught: bool
    """Whether a teacher says more than the text."""

    def read(self, number: int) -> Lesson:
        """One window."""
        ...

    def text(self, number: int) -> TokenArray:
        """One window's tokens."""
        ...

    def ask(self, tokens: TokenArray, first: int) -> Lesson:
        """What the teacher says of other text. Raises `CompressionError` where it cannot be asked."""
        ...


class KeptLessons:
    """What a teacher said once, and was kept."""

    taught = True

    def __init__(self, record: ReferenceRecord) -> None:
        self._record = record
        self.window = record.meta.window
        # A shorter rest at the end is left out, so that windows can be computed together.
        self.count = int((record.lengths == self.window).sum())

    def read(self, number: int) -> Lesson:
        """See `Lessons`."""
        found = next(self._record.read(number))
        return Lesson(found.tokens, 0, found.ids, found.logprobs, found.tail)

    def text(self, number: int) -> TokenArray:
        """See `Lessons`."""
        return next(self._record.read(number)).tokens

    def ask(self, tokens: TokenArray, first: int) -> Lesson:
        """See `Lessons`."""
        raise CompressionError("the teacher's words were kept beforehand; it is not at hand")


class LiveLessons:
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

    def read(self, number: int) -> Lesson:
        """See `Lessons`."""
        return self.ask(self.text(number), 0)

    def text(self, number: int) -> TokenArray:
        """See `Lessons`."""
        return self._windows[number].astype(np.int64)

    def ask(self, tokens: TokenArray, first: int) -> Lesson:
        """See `Lessons`."""
        hidden = None
        if self._hidden:
            ranked, hidden = self._teacher.rank_with_hidden(tokens, self._k)
        else:
            ranked = self._teacher.rank(tokens, self._k, ())
        mass = np.exp(ranked.logprobs.astype(np.float64)).sum(axis=1)
        tail = np.maximum(0.0, 1.0 - mass).astype(np.float32)
        return Lesson(tokens, first, ranked.ids, ranked.logprobs, tail, hidden)


class TextLessons:
    """Text alone. `firsts` says how much of each is a prompt, which nothing is learned from."""

    taught = False

    def __init__(self, texts: Sequence[TokenArray], firsts: Sequence[int] | None = None) -> None:
        self._texts = texts
        self._firsts = firsts
        self.count = len(texts)
        self.window = max(map(len, texts), default=0)

    def read(self, number: int) -> Lesson:
        """See `Lessons`."""
        first = self._firsts[number] if self._firsts is not None else 0
        return Lesson(self._texts[number], first)

    def text(self, number: int) -> TokenArray:
        """See `Lessons`."""
        return self._texts[number]

    def ask(self, tokens: TokenArray, first: int) -> Lesson:
        """See `Lessons`."""
        raise CompressionError("there is no teacher at hand, only text")
