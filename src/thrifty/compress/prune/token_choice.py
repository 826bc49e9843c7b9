"""Which tokens of a BPE vocabulary stay: the most frequent ones, and all that they are made of.

BPE builds a token by merging two shorter ones, so a token can only be written while both of these
exist. What stays is therefore closed: with each token stay the two that are merged last to make it,
and so on down to single bytes or characters. A text whose tokens all stay is then tokenized exactly
as before, because every merge on its way is still there, in the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.errors import CompressionError
from thrifty.evaluate.windows import TokenArray

Counts = npt.NDArray[np.float64]
"""How often each token occurs, [vocabulary]."""

ELSEWHERE = 0.1
"""The weight of text that was not counted. A token's id is a guess at its frequency there: BPE adds
tokens in the order of their frequency in the text that the tokenizer was trained on."""
MULTIPLE = 64
"""Numbers of tokens are multiples of this, which suits kernels."""
BYTES = 256
SPACE_MARK = "▁"
"""A space in the tokens of SentencePiece."""


class TokenParts:
    """The two tokens that are merged last to make each token."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        """`plan` is a `tokenizer.json`. Raises `CompressionError` if tokens cannot be taken from
        it.
        """
        if fault := describe_uncuttable(plan):
            raise CompressionError(fault)
        self.ids = read_ids(plan)
        self._ranks: dict[tuple[str, str], int] = {}
        self._splits: dict[str, list[tuple[str, str]]] = {}
        for rank, (left, right) in enumerate(read_merges(plan)):
            self._ranks.setdefault((left, right), rank)
            self._splits.setdefault(left + right, []).append((left, right))

    def find_needed(self, token: str) -> set[str]:
        """`token` and all tokens on the way to it."""
        needed: set[str] = set()
        waiting = [token]
        while waiting:
            one = waiting.pop()
            if one in self.ids and one not in needed:
                needed.add(one)
                waiting += self._split(one)
        return needed

    def _split(self, token: str) -> tuple[str, ...]:
        found = self._splits.get(token, [])
        if len(found) < 2:
            return found[0] if found else ()
        # Several merges give this token. BPE applies the merge of the lowest rank first.
        parts = list(token)
        while len(parts) > 2:
            pairs = list(itertools.pairwise(parts))
            at = min(range(len(pairs)), key=lambda n: self._ranks.get(pairs[n], len(self._ranks)))
            if pairs[at] not in self._ranks:
                return ()
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return tuple(parts)


def describe_uncuttable(plan: Mapping[str, Any]) -> str | None:
    """Why tokens cannot be taken from a `tokenizer.json`; None if they can."""
    model = plan["model"]
    kind = model.get("type")
    if kind != "BPE":
        return f"the tokenizer is of the kind {kind}; tokens can only be taken from BPE"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return (
            "the tokenizer marks where words begin or end in its tokens; tokens can only be taken "
            "from BPE over bytes"
        )
    if not model.get("byte_fallback") and not is_byte_level(plan):
        return (
            "the tokenizer has no tokens for single bytes, so text that uses a removed token could "
            "no longer be written; tokens can only be taken from BPE over bytes"
        )
    return None


def is_byte_level(plan: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` writes every byte as a character."""
    steps = plan.get("pre_tokenizer") or {}
    return any(one.get("type") == "ByteLevel" for one in steps.get("pretokenizers", [steps]))


def read_merges(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a `tokenizer.json`, in their order."""
    pairs = (one.split(" ", 1) if isinstance(one, str) else one for one in plan["model"]["merges"])
    return [(left, right) for left, right in pairs]


def read_ids(plan: Mapping[str, Any]) -> dict[str, int]:
    """The ids of all tokens of a `tokenizer.json`."""
    added = {one["content"]: int(one["id"]) for one in plan["added_tokens"]}
    return {**plan["model"]["vocab"], **added}


def find_indispensable(plan: Mapping[str, Any], used: Collection[int]) -> set[str]:
    """The tokens that always stay: added ones, single bytes, the unknown token, and those of
    `used`.
    """
    model = plan["model"]
    kept = {one["content"] for one in plan["added_tokens"]}
    if model.get("unk_token") is not None:
        kept.add(model["unk_token"])
    if model.get("byte_fallback"):
        # Decoders turn the mark into a space before they put bytes together.
        kept |= {SPACE_MARK, *(f"<0x{value:02X}>" for value in range(BYTES))}
    else:
        kept |= {token for token in model["vocab"] if len(token) == 1}
    ids = read_ids(plan)
    wanted = set(used)
    return {token for token, index in ids.items() if index in wanted or token in kept}


def weigh_tokens(counts: Mapping[str, tuple[float, Counts]], ids: Collection[int]) -> Counts:
    """How frequent each token is expected to be, [vocabulary].

    Args:
        counts: For each source of a text, its share and how often each token occurs in it.
        ids: The ids of all tokens.
    """
    size = 1 + max(ids)
    found: Counts = np.zeros(size)
    found[sorted(ids)] = 1 / np.arange(1, len(ids) + 1)
    found *= ELSEWHERE / found.sum()
    for share, each in counts.values():
        found += (1 - ELSEWHERE) * share * each[:size] / max(1.0, each.sum())
    return found


def choose_tokens(
    parts: TokenParts, weights: Counts, indispensable: Iterable[str], count: int
) -> list[int]:
    """The ids of at most `count` tokens that stay, ascending: the `indispensable`, then the
    heaviest, each with all that it is made of.

    Raises `CompressionError` if the indispensable ones are more than that.
    """
    kept: set[str] = set()
    for token in indispensable:
        kept |= parts.find_needed(token)
    if len(kept) > count:
        raise CompressionError(
            f"{len(kept):,} tokens must stay (single bytes, special tokens and those of the chat "
            f"template), so {count:,} are too few; keep more"
        )
    for token in sorted(parts.ids, key=lambda one: (-weights[parts.ids[one]], parts.ids[one])):
        if len(kept) == count:
            break
        if token not in kept:
            needed = parts.find_needed(token) - kept
            if len(kept) + len(needed) <= count:
                kept |= needed
    return sorted(parts.ids[token] for token in kept)


def round_count(count: int, most: int) -> int:
    """`count` tokens rounded up to a good multiple, at most `most`."""
    return min(most, -(-count // MULTIPLE) * MULTIPLE)


def count_tokens_of(windows: Iterable[TokenArray], size: int) -> Counts:
    """How often each of `size` tokens occurs."""
    found: Counts = np.zeros(size)
    for tokens in windows:
        found += np.bincount(tokens, minlength=size)[:size]
    return found
