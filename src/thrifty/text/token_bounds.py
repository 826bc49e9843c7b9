"""The least number of tokens that a text can have, found without tokenizing it. A text that cannot
fit is refused by it.

The bound must hold for every text. It follows from the bytes with byte-level BPE and with
SentencePiece BPE that has a token for each byte. WordPiece and Unigram fold unknown words into one
token and may drop what is no word; where they split at spaces, it follows from the words. Other
tokenizers drop space, or shrink text without a bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from thrifty.text.vocabulary import decode_piece

NFC_FACTOR = 4
"""NFC makes a text less than this many times shorter, in bytes of UTF-8."""
_IN_NO_TEXT = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
"""Bytes that UTF-8 never uses."""
_WORD = re.compile("[A-Za-z0-9][^ ]*")
"""From a letter or digit, which no normalizer drops, to the next space."""
_KEEPING_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Strip",
     "StripAccents"}
)  # fmt: skip
"""They keep letters and digits of ASCII, and a space between two of them."""
_SPLITTING_PRE_TOKENIZERS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_KEEPING_PRE_TOKENIZERS = frozenset({"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"})


class TokenBound(NamedTuple):
    """How little a tokenizer can make of a text."""

    most_bytes: int = 0
    """The most bytes (UTF-8) that one token can stand for; 0 where nothing is certain."""
    unknown: bytes = b""
    """Bytes without a token, which may be dropped."""
    splits_words: bool = False
    """Whether each word has a token of its own at least."""

    def count_least(self, text: str, enough: int = 2**31) -> int:
        """A number of tokens that `text` has at least. Words are counted up to `enough`."""
        if self.splits_words:
            return sum(1 for _ in islice(_WORD.finditer(text), enough))
        if not self.most_bytes:
            return 0
        data = text.encode("utf-8", "surrogatepass")
        if self.unknown:
            data = data.translate(None, self.unknown)
        return -(-len(data) // self.most_bytes)


def find_bound(tokenizer: Tokenizer, vocabulary: Mapping[str, int]) -> TokenBound:
    """The bound of a tokenizer."""
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    if type(tokenizer.model).__name__ in ("WordPiece", "Unigram"):
        return TokenBound(splits_words=_splits_words(tokenizer, added))
    if any(token.lstrip or token.rstrip for token in added.values()):
        return TokenBound()
    factor = 1
    for step in _read_steps(tokenizer.normalizer, "normalizers"):
        if step["type"] == "NFC":
            factor = NFC_FACTOR
        elif not (step["type"] == "Prepend" or _replaces_space(step)):
            return TokenBound()
    steps = list(_read_steps(tokenizer.pre_tokenizer, "pretokenizers"))
    for step in steps:
        if step["type"] not in _KEEPING_PRE_TOKENIZERS or step.get("behavior") == "Removed":
            return TokenBound()
    model = tokenizer.model
    if type(model).__name__ != "BPE" or model.dropout:
        return TokenBound()
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    if byte_level:
        known = {
            decode_piece(tokenizer, letter)[0]
            for letter in ByteLevel.alphabet()
            if letter in vocabulary
        }
    elif model.byte_fallback:
        known = {value for value in range(256) if f"<0x{value:02X}>" in vocabulary}
    else:
        return TokenBound()
    unknown = bytes(value for value in range(256) if value not in known | _IN_NO_TEXT)
    if unknown and (factor > 1 or not byte_level):
        return TokenBound()  # Which bytes are left is known too late.
    longest = 0
    for token in vocabulary:
        # Byte-level BPE writes each byte as one character.
        size = len(token) if byte_level and token not in added else len(token.encode())
        longest = max(longest, size)
    return TokenBound(longest * factor, unknown)


def _splits_words(tokenizer: Tokenizer, added: Iterable[str]) -> bool:
    """Whether every word with a letter or digit of ASCII gets a token of its own."""
    if any(" " in token for token in added):
        return False
    for step in _read_steps(tokenizer.normalizer, "normalizers"):
        if not (step["type"] in _KEEPING_NORMALIZERS or _joins_spaces(step)):
            return False
    steps = list(_read_steps(tokenizer.pre_tokenizer, "pretokenizers"))
    splits = [step["type"] in _SPLITTING_PRE_TOKENIZERS or _splits_at_marks(step) for step in steps]
    keeps = [
        step["type"] in _KEEPING_PRE_TOKENIZERS and step.get("behavior") != "Removed"
        for step in steps
    ]
    return any(splits) and all(map(max, splits, keeps))


def _joins_spaces(step: dict[str, Any]) -> bool:
    """Whether it makes several spaces one, as SentencePiece does."""
    return step["type"] == "Replace" and (step.get("pattern"), step.get("content")) in (
        ({"Regex": " {2,}"}, " "),
        ({"Regex": " {2,}"}, "▁"),
    )


def _splits_at_marks(step: dict[str, Any]) -> bool:
    return step["type"] == "Metaspace" and step.get("split", True) is True


def _read_steps(part: Any, key: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, however they are nested."""
    if part is None:
        return
    waiting = [json.loads(part.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step[key]
        else:
            yield step


def _replaces_space(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and (step.get("pattern"), step.get("content")) == (
        {"String": " "},
        "▁",
    )
