"""A teacher for a student with fewer tokens.

It reads a text in its own tokens, as it reads everything: what it would say of a text that is
spelled in the student's is no better than what the student says. Its predictions stand where a
token of both ends; a removed token's probability counts for the first of the tokens that write it
(`NarrowedVocabulary.fold`). Where the student is within a token that it does not have, the
teacher's prediction of that token says how it goes on: of all removed tokens that begin with what
the student has written of it, each next piece has their probability.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.evaluate.narrowed import LEAST_MASS, NarrowedVocabulary
from thrifty.evaluate.scorer import Logprobs, Ranker, TopTokens
from thrifty.evaluate.windows import TokenArray

LEAST = float(np.log(LEAST_MASS))


@dataclass(frozen=True)
class OwnText:
    """A student's text of T tokens in the teacher's own tokens."""

    tokens: TokenArray
    """The teacher's, [T']."""
    rows: TokenArray
    """For each prediction of the student, [T - 1], the teacher's at the same place of the text, or
    of the token within which that place is; -1 where there is none."""
    written: list[tuple[int, ...]]
    """What the student has written of that token, [T - 1]: empty at its beginning."""


class NarrowedTeacher:
    """Predicts the student's next tokens; see the module."""

    def __init__(self, teacher: Ranker, narrowed: NarrowedVocabulary) -> None:
        self._teacher: Any = teacher
        self._narrowed = narrowed
        self.label = teacher.label
        self.identity = f"{teacher.identity}+own-tokens-folded-{narrowed.sha256[:16]}"
        self.tokenizer = narrowed.narrow
        self.vocab_size = narrowed.size
        self.context_length = teacher.context_length

    @cached_property
    def _continuations(self) -> Continuations:
        return Continuations(self._narrowed)

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        """See `Ranker`. Tokens, ids and `full` are of the smaller vocabulary."""
        from thrifty.graphs.logits import find_largest  # loads OpenVINO

        text = read_own_text(self._narrowed, tokens)
        if len(text.tokens) < 2:
            return self._spread_evenly(len(tokens) - 1, k, len(rows))
        ranked = self._teacher.rank(text.tokens, 1, range(len(text.tokens) - 1))
        folded = self._narrowed.fold(ranked.full)
        best = find_largest(folded, k)
        at = np.maximum(text.rows, 0)
        ids = best[at]
        logprobs = np.take_along_axis(folded, best, 1)[at]
        target = folded[at, tokens[1:]]
        chosen = {row: number for number, row in enumerate(rows)}
        full = folded[at[list(rows)]]
        for place, (row, written) in enumerate(zip(text.rows, text.written, strict=True)):
            if row >= 0 and not written:
                continue
            whole = ranked.full[row] if row >= 0 else None
            found = self._continuations.find(whole, written, int(tokens[place + 1]))
            ids[place], logprobs[place] = found.rank(k, self.vocab_size)
            target[place] = found.of(int(tokens[place + 1]))
            if place in chosen:
                full[chosen[place]] = found.spread(self.vocab_size)
        return TopTokens(ids, logprobs, target, full)

    def rank_with_hidden(self, tokens: TokenArray, k: int) -> tuple[TopTokens, Any]:
        """See `TorchScorer`. Hidden states stand at the student's tokens, so that the teacher reads
        these.
        """
        from thrifty.graphs.logits import find_largest

        every = range(len(tokens) - 1)
        ranked, hidden = self._teacher.rank_with_hidden(self._narrowed.widen(tokens), 1, every)
        folded = self._narrowed.fold(ranked.full)
        ids = find_largest(folded, k)
        target = np.take_along_axis(folded, tokens[1:, None], 1)[:, 0]
        return TopTokens(ids, np.take_along_axis(folded, ids, 1), target, folded[:0]), hidden

    def close(self) -> None:
        """Free the teacher."""
        self._teacher.close()

    def _spread_evenly(self, count: int, k: int, rows: int) -> TopTokens:
        """Of a text about which the teacher says nothing, because it is one token to it."""
        even = np.float32(-np.log(self.vocab_size))
        return TopTokens(
            np.tile(np.arange(k), (count, 1)), np.full((count, k), even, np.float32),
            np.full(count, even, np.float32), np.full((rows, self.vocab_size), even, np.float32),
        )  # fmt: skip


def narrow_teacher(teacher: Ranker, narrowed: NarrowedVocabulary | None) -> Ranker:
    """A teacher as a student with these tokens needs it; itself where they are its own."""
    return teacher if narrowed is None else NarrowedTeacher(teacher, narrowed)


@dataclass(frozen=True)
class NextPieces:
    """The possible next pieces of a token that is being written, the likeliest first."""

    ids: npt.NDArray[np.int64]
    logprobs: Logprobs

    def rank(self, k: int, size: int) -> tuple[npt.NDArray[np.int64], Logprobs]:
        """The `k` likeliest of a vocabulary of `size` tokens; all others have next to nothing."""
        known = self.ids[:k]
        others = np.setdiff1d(np.arange(min(size, k + len(known))), known)[: k - len(known)]
        rest = np.full(len(others), LEAST, np.float32)
        return np.append(known, others), np.append(self.logprobs[:k], rest)

    def of(self, token: int) -> float:
        """The log-probability of one token."""
        (places,) = np.nonzero(self.ids == token)
        return float(self.logprobs[places[0]]) if len(places) else LEAST

    def spread(self, size: int) -> Logprobs:
        """The log-probabilities of the whole vocabulary."""
        found = np.full(size, LEAST, np.float32)
        found[self.ids] = self.logprobs
        return found


class Continuations:
    """How removed tokens go on, by the pieces that were written of them."""

    def __init__(self, narrowed: NarrowedVocabulary) -> None:
        known: defaultdict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        for token, pieces in narrowed.spell_removed():
            for count in range(1, len(pieces)):
                known[tuple(pieces[:count])].append((token, pieces[count]))
        self._known = {
            written: tuple(np.array(column, np.int64) for column in zip(*found, strict=True))
            for written, found in known.items()
        }

    def find(self, whole: Logprobs | None, written: tuple[int, ...], actual: int) -> NextPieces:
        """What follows `written`, by log-probabilities of the whole vocabulary; the `actual` next
        piece alone where these do not tell.
        """
        tokens, pieces = self._known.get(written, (None, None))
        if whole is not None and tokens is not None and pieces is not None:
            ids, places = np.unique(pieces, return_inverse=True)
            mass = np.bincount(places, np.exp(whole[tokens].astype(np.float64)))
            total = mass.sum()
            # Text that the teacher finds impossible goes on as it does.
            if actual in ids and total > LEAST_MASS:
                order = np.argsort(-mass, kind="stable")
                shares = np.log(np.maximum(mass[order] / total, LEAST_MASS))
                return NextPieces(ids[order], shares.astype(np.float32))
        return NextPieces(np.array([actual]), np.zeros(1, np.float32))


def read_own_text(narrowed: NarrowedVocabulary, tokens: TokenArray) -> OwnText:
    """A student's text as the teacher's tokenizer writes it. Special tokens stay what they are."""
    own: list[int] = []
    rows = np.full(len(tokens), -1, np.int64)
    written: list[tuple[int, ...]] = [()] * len(tokens)
    for begin, end in narrowed.cut(narrowed.widen(tokens), np.zeros(len(tokens), np.bool_)):
        part = tokens[begin:end]
        found = narrowed.write_whole(part)
        first = len(own)
        own += found
        ends = np.cumsum([len(one) for one in narrowed.own_bytes_of(part)])
        own_ends = np.cumsum([len(one) for one in narrowed.bytes_of(np.array(found))])
        starts = np.append(0, own_ends[:-1])
        # The token of the teacher within which, or at whose end, each of the student's ends.
        inside = np.searchsorted(own_ends, ends, side="left")
        before = np.append(0, ends[:-1])
        for place, (at, text_end) in enumerate(zip(inside.tolist(), ends.tolist(), strict=True)):
            if own_ends[at] == text_end:
                rows[begin + place] = first + at
                continue
            if first + at == 0:
                continue  # Nothing was predicted of the first token.
            since = int(np.searchsorted(before, starts[at], side="left"))
            if since <= place and before[since] == starts[at]:
                rows[begin + place] = first + at - 1
                written[begin + place] = tuple(part[since : place + 1].tolist())
    rows[rows >= len(own) - 1] = -1  # Nothing is predicted after the last token.
    return OwnText(np.array(own, np.int64), rows[:-1], written[:-1])
