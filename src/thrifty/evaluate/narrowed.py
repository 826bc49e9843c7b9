"""A reference beside a model that has only some of its tokens.

The model writes a token that was removed as several others. Both models are judged on the same
text: the reference reads it in its tokens, the model in its own. What the model says of a
token of the reference is the probability of all tokens that it writes it with.

Distributions are compared where both models stand at the same place of the text. The reference's
probability of a removed token there counts for the first of the tokens that write it, which is what
a model with the smaller vocabulary has to predict at this place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.engines.machine import detect_machine
from thrifty.errors import EvaluationError
from thrifty.evaluate.divergence import RESULT, coarse_divergence
from thrifty.evaluate.reference import Window
from thrifty.evaluate.scorer import Logprobs, Ranker, Scorer, TopTokens
from thrifty.evaluate.windows import BoolArray, TokenArray
from thrifty.text.tokenizer import TextTokenizer
from thrifty.text.vocabulary import read_vocabulary

ROWS = 64
"""Predictions that are folded at a time, so that little memory is used."""
LEAST_MASS = 1e-30
SPACE = "\u2581"
"""What tokenizers without a pre-tokenizer write for a space."""


@dataclass(frozen=True)
class SharedText:
    """A window of T tokens of the reference, as the model's T' tokens."""

    tokens: TokenArray
    """The model's, [T']."""
    places: TokenArray
    """For each prediction of the reference, the model's at the same place of the text; -1 if it
    has none, [T - 1]."""
    groups: TokenArray
    """For each prediction of the reference, the number of the smallest piece of the text around it
    at whose ends tokens of both end, [T - 1]."""
    own_groups: TokenArray
    """The same for the model's predictions, [T' - 1]."""

    def sum_over_text(self, logprobs: Logprobs) -> Logprobs:
        """The model's log-probability of each token of the reference, [T - 1], from those of its
        own [T' - 1]. Tokens of one piece share what it has evenly.
        """
        size = int(max(self.groups[-1], self.own_groups[-1])) + 1
        sums = np.bincount(self.own_groups, logprobs.astype(np.float64), size)
        counts = np.bincount(self.groups, minlength=size)
        shared: Logprobs = (sums / np.maximum(1, counts))[self.groups].astype(np.float32)
        return shared


class NarrowedVocabulary:
    """A vocabulary, and the smaller one that was made of it."""

    def __init__(self, whole: TextTokenizer, narrow: TextTokenizer) -> None:
        """All tokens of `narrow` are tokens of `whole`; see `find_narrowed`."""
        self.narrow = narrow
        self._whole = whole
        ids, own = whole.tokenizer.get_vocab(), narrow.tokenizer.get_vocab()
        self.size, self.whole_size = narrow.vocabulary_size, whole.vocabulary_size
        self._new = np.full(self.whole_size, -1, np.int64)
        self.old = np.zeros(self.size, np.int64)
        """The id in the whole vocabulary, by that in the smaller one."""
        for token, index in own.items():
            self._new[ids[token]] = index
            self.old[index] = ids[token]
        self._pieces = {index: token for token, index in ids.items()}
        self._bytes = read_vocabulary(whole.tokenizer, self.whole_size)
        self._own_bytes = read_vocabulary(narrow.tokenizer, self.size)
        self._added = frozenset(whole.tokenizer.get_added_tokens_decoder())
        gone = sorted(index for index in self._pieces if self._new[index] < 0)
        firsts = np.array([self._spell(index)[0] for index in gone], np.int64)
        order = np.argsort(firsts, kind="stable")
        self._gone = np.array(gone, np.int64)[order]
        self._firsts, self._starts = np.unique(firsts[order], return_index=True)
        facts = json.dumps(sorted(own.items())).encode()
        self.sha256 = hashlib.sha256(facts).hexdigest()

    def fold(self, logprobs: Logprobs) -> Logprobs:
        """Log-probabilities of the whole vocabulary [n, whole], as they are for the smaller one
        [n, size]: that of a removed token counts for the first token that writes it.
        """
        folded = np.empty((len(logprobs), self.size), np.float32)

        def fold_rows(first: int) -> None:
            rows = logprobs[first : first + ROWS]
            into = folded[first : first + ROWS]
            # Clipping changes no valid index, and spares a copy.
            np.take(rows, self.old, axis=1, out=into, mode="clip")
            if len(self._gone):
                mass = np.add.reduceat(np.exp(rows[:, self._gone]), self._starts, axis=1)
                more = np.log(np.maximum(mass, LEAST_MASS))
                into[:, self._firsts] = np.logaddexp(into[:, self._firsts], more)

        # NumPy computes on one core, and lets other threads run meanwhile.
        with ThreadPoolExecutor(len(detect_machine().cores)) as pool:
            list(pool.map(fold_rows, range(0, len(logprobs), ROWS)))
        return folded

    def widen(self, tokens: TokenArray) -> TokenArray:
        """Tokens of the smaller vocabulary as tokens of the whole one."""
        return self.old[tokens]

    def new_ids(self, tokens: TokenArray) -> TokenArray:
        """The tokens of the smaller vocabulary; -1 for those that it does not have."""
        return self._new[tokens]

    def bytes_of(self, tokens: TokenArray) -> list[bytes]:
        """The bytes of each token of the whole vocabulary."""
        return [self._bytes[int(one)] for one in tokens]

    def own_bytes_of(self, tokens: TokenArray) -> list[bytes]:
        """The bytes of each token of the smaller vocabulary."""
        return [self._own_bytes[int(one)] for one in tokens]

    def respell(self, tokens: TokenArray) -> TokenArray:
        """Tokens of the whole vocabulary as those of the smaller one that write the same."""
        return self.align(tokens, np.ones(len(tokens) - 1, np.bool_)).tokens

    def align(self, tokens: TokenArray, counted: BoolArray) -> SharedText:
        """The text of `tokens`, as the model's tokenizer writes it.

        Special tokens are the same in both, and no token of the model holds text of which a part
        counts and a part does not.
        """
        flags = np.append(False, counted)
        own: list[int] = []
        own_groups: list[int] = []
        groups = np.zeros(len(tokens), np.int64)
        places = np.full(len(tokens), -1, np.int64)
        group = 0
        for begin, end in self.cut(tokens, flags):
            spelled = self._write(tokens[begin:end].tolist())
            ends = np.cumsum([len(self._bytes[one]) for one in tokens[begin:end]])
            own_ends = np.cumsum([len(self._own_bytes[one]) for one in spelled])
            shared = np.intersect1d(ends, own_ends)
            mine = np.searchsorted(shared, ends, side="left")
            theirs = np.searchsorted(shared, own_ends, side="left")
            groups[begin:end] = group + mine
            own_groups += (group + theirs).tolist()
            # A token of the reference begins where the one before it ends.
            starts = np.append(0, ends[:-1])
            at = np.searchsorted(own_ends, starts, side="right")
            same = np.isin(starts, np.append(0, own_ends))
            places[begin:end] = np.where(same, len(own) + at, -1)
            own += spelled
            group += len(shared)
        # A prediction of a token stands at the place of the token before it.
        predicted = places[1:]
        return SharedText(
            np.array(own, np.int64), np.where(predicted > 0, predicted - 1, -1), groups[1:],
            np.array(own_groups[1:], np.int64),
        )  # fmt: skip

    def spell_removed(self) -> Iterator[tuple[int, list[int]]]:
        """The removed tokens, each with the tokens of the smaller vocabulary that write it."""
        for index in self._gone.tolist():
            yield index, self._spell(index)

    def is_special(self, tokens: TokenArray) -> BoolArray:
        """Which tokens of the smaller vocabulary are added ones, such as the end of a text."""
        return np.isin(self.old[tokens], list(self._added))

    def write_whole(self, tokens: TokenArray) -> list[int]:
        """The text of tokens of the smaller vocabulary as the whole one's tokenizer writes it; the
        same tokens where it begins or ends within a character, and of special tokens.
        """
        ids: list[int] = self.old[tokens].tolist()
        if self.is_special(tokens).any():
            return ids
        written = self._tokenize(self._whole, ids)
        if written is None:
            return ids
        before, after = (b"".join(self._bytes[one] for one in some) for some in (ids, written))
        return written if before == after else ids

    def cut(self, tokens: TokenArray, flags: BoolArray) -> Iterator[tuple[int, int]]:
        """The parts of a text of the whole vocabulary that are written one by one: special tokens
        alone, and what is between them as long as it counts alike.
        """
        begin = 0
        for at in range(1, len(tokens) + 1):
            if (
                at == len(tokens)
                or flags[at] != flags[begin]
                or int(tokens[at]) in self._added
                or int(tokens[begin]) in self._added
            ):
                yield begin, at
                begin = at

    def _write(self, ids: Sequence[int]) -> list[int]:
        """The model's tokens for the text of `ids`."""
        new = self._new[list(ids)]
        if (new >= 0).all():
            # What stays is tokenized as before.
            return [int(one) for one in new]
        written = self._tokenize(self.narrow, ids)
        if written is not None and self._same_bytes(ids, written):
            return written
        return [one for index in ids for one in self._spell(index)]

    def _tokenize(self, tokenizer: TextTokenizer, ids: Sequence[int]) -> list[int] | None:
        """The text of tokens of the whole vocabulary as a tokenizer writes it; None for text that
        does not begin and end with whole characters.
        """
        try:
            text = b"".join(self._bytes[index] for index in ids).decode()
        except UnicodeDecodeError:
            return None
        if tokenizer.tokenizer.pre_tokenizer is None:
            pieces = text.replace(" ", SPACE)
            return [token.id for token in tokenizer.tokenizer.model.tokenize(pieces)]
        return tokenizer.encode(text, add_special_tokens=False)

    def _same_bytes(self, ids: Sequence[int], written: Sequence[int]) -> bool:
        before = b"".join(self._bytes[index] for index in ids)
        return before == b"".join(self._own_bytes[one] for one in written)

    def _spell(self, index: int) -> list[int]:
        """One token of the whole vocabulary in those of the smaller one."""
        if self._new[index] >= 0:
            return [int(self._new[index])]
        piece = self._pieces[index]
        return [token.id for token in self.narrow.tokenizer.model.tokenize(piece)]


def find_narrowed(whole: TextTokenizer, narrow: TextTokenizer) -> NarrowedVocabulary | None:
    """The relation of a vocabulary to a smaller one that was made of it; None if it was not: tokens
    are missing in `whole`, text is prepared in another way, or a removed token cannot be written.
    """
    ids, own = whole.tokenizer.get_vocab(), narrow.tokenizer.get_vocab()
    if not own or not own.keys() <= ids.keys():
        return None
    if sorted(own.values()) != list(range(len(own))):
        return None
    plans = [json.loads(one.tokenizer.to_str()) for one in (whole, narrow)]
    if _describe_steps(plans[0]) != _describe_steps(plans[1]):
        return None
    if any(plan["model"].get("type") != "BPE" for plan in plans):
        return None
    try:
        return NarrowedVocabulary(whole, narrow)
    except IndexError:
        return None


def _describe_steps(plan: dict[str, Any]) -> Any:
    """What prepares a text for its tokens, and the tokens that are added to it."""
    steps = plan["pre_tokenizer"] or {}
    bare = [
        {key: value for key, value in step.items() if key != "trim_offsets"}
        for step in steps.get("pretokenizers", [steps])
    ]
    return [plan["normalizer"], bare, sorted(one["content"] for one in plan["added_tokens"])]


class FoldedReference:
    """A reference that predicts in a smaller vocabulary: see `NarrowedVocabulary.fold`."""

    def __init__(self, reference: Ranker, narrowed: NarrowedVocabulary) -> None:
        self._reference = reference
        self._narrowed = narrowed
        self.label = reference.label
        self.identity = f"{reference.identity}+folded-{narrowed.sha256[:16]}"
        self.tokenizer = reference.tokenizer
        self.vocab_size = narrowed.size
        self.context_length = reference.context_length

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        """See `Ranker`. Ids and `full` are of the smaller vocabulary."""
        from thrifty.graphs.logits import find_largest  # loads OpenVINO

        ranked = self._reference.rank(tokens, 1, range(len(tokens) - 1))
        folded = self._narrowed.fold(ranked.full)
        ids = find_largest(folded, k)
        logprobs = np.take_along_axis(folded, ids, 1)
        return TopTokens(ids, logprobs, ranked.target, folded[list(rows)])

    def close(self) -> None:
        """Free the reference."""
        self._reference.close()


def compare_narrowed(
    scorer: Scorer, window: Window, narrowed: NarrowedVocabulary
) -> npt.NDArray[Any]:
    """The results of one window, as `divergence.compare_window` gives them. The window is of a
    `FoldedReference`. Raises `EvaluationError`.

    Where the model has no prediction at the same place of the text, the divergence is NaN.
    """
    text = narrowed.align(window.tokens, window.counted)
    if len(text.tokens) > scorer.context_length:
        raise EvaluationError(
            f"{scorer.label} needs {len(text.tokens)} tokens for a window of "
            f"{len(window.tokens)}, and accepts {scorer.context_length}; set a shorter --window"
        )
    shared = np.flatnonzero(text.places >= 0)
    at = text.places[shared]
    k = window.ids.shape[1]
    ids = np.zeros((len(text.tokens) - 1, k + 1), np.int64)
    ids[at, :k] = window.ids[shared]
    ids[:, k] = text.tokens[1:]
    exact = [n for n, row in enumerate(window.exact_rows) if text.places[row] >= 0]
    rows = [window.exact_rows[n] for n in exact]
    scored = scorer.score(text.tokens, ids, text.places[rows].tolist())
    if not np.isfinite(scored.logprobs[:, k]).all():
        raise EvaluationError(
            f"{scorer.label} computes log-probabilities that are not finite in window "
            f"{window.number}"
        )
    found = np.zeros(len(window.target), RESULT)
    found["target"] = text.sum_over_text(scored.logprobs[:, k])
    found["reference"] = window.target
    found["divergence"] = found["exact"] = np.nan
    found["divergence"][shared] = coarse_divergence(
        window.logprobs[shared], window.tail[shared], scored.logprobs[at, :k]
    )
    found["same"][shared] = scored.top[at] == window.ids[shared, 0]
    if rows and scored.full.size:
        p = window.exact[exact].astype(np.float64)
        found["exact"][rows] = (np.exp(p) * (p - scored.full)).sum(axis=1)
    return found
