"""How many tokens stay: what smaller vocabularies cost on text, beside what pruned neurons cost.

A smaller vocabulary leaves all layers whole. It costs more tokens for the same text, and text that
the model has not seen spelled in this way. Both are measured on text that the tokens were not
counted on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from thrifty.artifacts.chat_templates import read_chat_templates
from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.compress.prune.token_choice import (
    MULTIPLE,
    Counts,
    TokenParts,
    choose_tokens,
    count_tokens_of,
    find_indispensable,
    round_count,
    weigh_tokens,
)
from thrifty.compress.prune.vocabulary import (
    KeptTokens,
    cut_tokenizer,
    keep_tokens,
    list_named,
)
from thrifty.errors import CompressionError
from thrifty.evaluate.narrowed import NarrowedVocabulary, find_narrowed
from thrifty.evaluate.windows import TokenArray
from thrifty.text.tokenizer import TextTokenizer

LITTLE_LONGER = 0.01
"""`auto` removes tokens as long as no source of the text needs more than so many more of them."""
MOST_LONGER = 0.1
"""The search for a size removes no more tokens than make the text so much longer."""
SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)
"""Which parts of the parameters that have to go are tried as tokens."""
NamedWindows = Sequence[tuple[str, TokenArray]]
"""Windows of text with the names of their sources."""


@dataclass(frozen=True)
class VocabularyCut:
    """A smaller vocabulary, and how much longer it makes text."""

    kept: KeptTokens
    tokens_before: int
    narrowed: NarrowedVocabulary
    longer: dict[str, float]
    """By source: how many more tokens a text has, as a share of those that it had."""
    longer_overall: float
    """The same for the whole text."""
    parameters: int
    """How many parameters go with the tokens."""

    @property
    def tokens(self) -> int:
        """How many tokens stay."""
        return len(self.kept.old_ids)

    @property
    def description(self) -> str:
        """What is kept, for reports."""
        return f"{self.tokens:,} of {self.tokens_before:,} tokens"

    def to_lineage(self) -> dict[str, Any]:
        """What the lineage keeps."""
        return {
            "tokens": self.tokens, "tokens_before": self.tokens_before,
            "parameters": self.parameters,
            "longer": round(self.longer_overall, 5),
            "longer_by_source": {name: round(found, 5) for name, found in self.longer.items()},
        }  # fmt: skip


class VocabularyPlanner:
    """Smaller vocabularies of a decoder."""

    def __init__(
        self,
        checkpoint: DecoderCheckpoint,
        tokenizer: TextTokenizer,
        folder: Path,
        counted: Mapping[str, tuple[float, Sequence[TokenArray]]],
        held_out: NamedWindows,
    ) -> None:
        """Raises `CompressionError` if tokens cannot be taken from this tokenizer.

        Args:
            checkpoint: The decoder.
            tokenizer: Its tokenizer.
            folder: Where its chat templates and its `generation_config.json` are.
            counted: For each source of text, its share and windows to count tokens in.
            held_out: Other windows, to measure how much longer text becomes.
        """
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._plan: dict[str, Any] = json.loads(tokenizer.tokenizer.to_str())
        self._parts = TokenParts(self._plan)
        self.size = checkpoint.shape.vocab_size
        if tokenizer.vocabulary_size > self.size:
            raise CompressionError(
                f"the tokenizer has a token {tokenizer.vocabulary_size - 1}, but the model only "
                f"{self.size}; save the tokenizer that the model was trained with"
            )
        used = list_named(checkpoint, folder)
        for template in read_chat_templates(folder).values():
            used |= set(tokenizer.encode(template, add_special_tokens=False))
        self._indispensable = find_indispensable(self._plan, used)
        self._counted = counted
        self._held_out = held_out
        self._cuts: dict[int, VocabularyCut] = {}
        tables = 1 if "lm_head.weight" not in checkpoint.tensors else 2
        self.parameters_per_token = tables * checkpoint.shape.hidden_size

    @cached_property
    def _weights(self) -> Counts:
        counts = {
            name: (share, count_tokens_of(windows, self.size))
            for name, (share, windows) in self._counted.items()
        }
        return weigh_tokens(counts, self._parts.ids.values())

    def cut(self, count: int) -> VocabularyCut:
        """The vocabulary of `count` tokens. Raises `CompressionError` if that is too few or all."""
        if not 0 < count < self.size:
            raise CompressionError(
                f"the model has {self.size:,} tokens; keep fewer of them than that, not {count:,}"
            )
        if count not in self._cuts:
            kept = KeptTokens(
                tuple(choose_tokens(self._parts, self._weights, self._indispensable, count))
            )
            self._cuts[count] = self._measure(kept)
        return self._cuts[count]

    def count_of(self, asked: float) -> int:
        """How many tokens are asked for: a number, or a share below 1. Rounded up."""
        count = round(asked * self.size) if asked < 1 else int(asked)
        return round_count(count, self.size - 1) if count < self.size else count

    def find_auto(self) -> VocabularyCut:
        """The smallest vocabulary that hardly makes text longer. Raises `CompressionError`."""
        low, high = 0, (self.size - 1) // MULTIPLE
        best = None
        while low < high:
            middle = (low + high) // 2
            cut = self._try(middle * MULTIPLE)
            if cut is not None and max(cut.longer.values(), default=0.0) <= LITTLE_LONGER:
                best, high = cut, middle
            else:
                low = middle + 1
        if best is None:
            raise CompressionError(
                f"no token can go: text would need more than {LITTLE_LONGER:.0%} more tokens; say "
                "how many stay (--vocabulary N)"
            )
        return best

    def list_cuts(self, excess: float) -> Iterator[tuple[float, VocabularyCut]]:
        """Vocabularies that are smaller by parts of `excess` parameters, the smallest first, with
        these parts; only those that do not make the text much longer.
        """
        for share in SHARES:
            gone = math.ceil(share * excess / self.parameters_per_token)
            cut = self._try((self.size - gone) // MULTIPLE * MULTIPLE)
            if cut is not None and cut.longer_overall <= MOST_LONGER:
                yield share, cut

    def _try(self, count: int) -> VocabularyCut | None:
        try:
            return self.cut(count)
        except CompressionError:
            return None

    def _measure(self, kept: KeptTokens) -> VocabularyCut:
        plan = json.dumps(cut_tokenizer(self._plan, kept))
        narrow = TextTokenizer(Tokenizer.from_str(plan), None)
        narrowed = find_narrowed(self._tokenizer, narrow)
        if narrowed is None:
            raise CompressionError(
                "the tokenizer cannot write its removed tokens with those that stay, so tokens "
                "cannot be taken from it"
            )
        before: dict[str, int] = {}
        after: dict[str, int] = {}
        for name, tokens in self._held_out:
            before[name] = before.get(name, 0) + len(tokens)
            after[name] = after.get(name, 0) + len(narrowed.respell(tokens))
        longer = {name: after[name] / count - 1 for name, count in before.items()}
        overall = sum(after.values()) / max(1, sum(before.values())) - 1
        gone = self.parameters_per_token * (self.size - len(kept.old_ids))
        return VocabularyCut(kept, self.size, narrowed, longer, overall, gone)


def choose_cut(
    planner: VocabularyPlanner,
    excess: float,
    measure_cut: Callable[[VocabularyCut], float],
    forecast: Callable[[float], float],
) -> VocabularyCut | None:
    """The vocabulary with which a model loses least that must lose `excess` parameters.

    What the tokens do not make up for is taken from the layers. `measure_cut` gives the loss of a
    smaller vocabulary alone; `forecast` that of taking a part of the excess, 0 to 1, from the
    layers.
    """
    best: VocabularyCut | None = None
    least = forecast(1.0)
    for share, cut in planner.list_cuts(excess):
        if best is not None and least <= forecast(1 - share):
            break  # What the layers would lose alone is more than that.
        loss = measure_cut(cut) + forecast(1 - share)
        if loss < least:
            best, least = cut, loss
        elif best is not None:
            break
    return best


def make_forecast(half: float, whole: float) -> Callable[[float], float]:
    """A power law through the losses of taking half of the excess from the layers, and all of it.

    A loss of nothing or less, which is noise, counts as hardly any.
    """
    half, whole = max(half, 1e-6), max(whole, 1e-6)
    exponent = min(4.0, max(0.5, math.log2(whole / half)))
    return lambda part: whole * part**exponent if part > 0 else 0.0


def shrink(checkpoint: DecoderCheckpoint, cut: VocabularyCut | None) -> DecoderCheckpoint:
    """The decoder with the tokens of `cut`; all of them without one."""
    return checkpoint if cut is None else keep_tokens(checkpoint, cut.kept)
