"""Words of many texts at once as 64-bit numbers, and what is computed of them: MinHash signatures,
checksums, and sequences of words.

All of it is NumPy over a batch of texts: no loop over words runs in Python. A word is a run of
letters, digits and `_`, whatever its case; characters of scripts that are written without spaces
are words of their own.

MinHash: Broder, "On the resemblance and containment of documents", 1997; banding as in Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

PERMUTATIONS = 128
"""The most numbers in a signature."""
RECALL = 0.995
"""The share of pairs at the stated similarity that banding must find."""
_BLOCK = 1024
"""Sequences that are permuted at once: 0.5 MB of 32-bit numbers, which stays in a core's cache."""
_PLACES = 64
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
_OPERATORS = "#%&*/@\\^"
"""Operators that tell names and formulas apart, as mathematical symbols do: `C#`, `a / b`."""


class Words(NamedTuple):
    """The words of a batch of texts."""

    hashes: U64
    """One number for each word: [words]."""
    starts: I64
    """Where each text's words begin, and where the last one's end: [texts + 1]."""
    lengths: I64
    """The number of characters of each word: [words]."""


@functools.cache
def _tables(symbols: bool) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """For every code point: whether it is part of a word, and whether it is one by itself."""
    if symbols:
        part, alone = (table.copy() for table in _tables(False))
        signs = [c for c in range(0x110000) if unicodedata.category(chr(c)) in ("Sm", "Sc")]
        signs += [ord(mark) for mark in _OPERATORS]
        part[signs] = alone[signs] = True
        return part, alone
    part = np.zeros(0x110000, np.bool_)
    part[[code for code in range(0x110000) if chr(code).isalnum()]] = True
    part[ord("_")] = True
    alone = np.zeros(0x110000, np.bool_)
    for first, last in _WITHOUT_SPACES:
        alone[first : last + 1] = True
    return part, alone & part


@functools.cache
def _random(name: str, count: int) -> U64:
    """Odd random numbers, the same in every run and for every release of NumPy."""
    seed = np.uint64(int.from_bytes(name.encode().ljust(8, b"\0")[:8], "little"))
    counted = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix(counted + seed) | np.uint64(1)


def mix(values: U64) -> U64:
    """Spread numbers over all 64 bits (the finalizer of SplitMix64; Steele and others, 2014)."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values = values ^ (values >> np.uint64(27))
    values = values * np.uint64(0x94D049BB133111EB)
    mixed: U64 = values ^ (values >> np.uint64(31))
    return mixed


def find_words(texts: Sequence[str], *, symbols: bool = False) -> Words:
    """The words of texts; with `symbols`, mathematical signs, currencies and operators are words
    of their own. Characters are held as 32-bit numbers, twice.
    """
    part, alone = _tables(symbols)
    joined = "\n".join(texts).lower()
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    # Lower case can be longer than what was written, so ends are counted in what was joined.
    ends = _find_ends(texts, codes)
    inside = np.flatnonzero(part[codes])
    if not len(inside):
        empty = np.zeros(0, np.int64)
        return Words(np.zeros(0, np.uint64), np.zeros(len(texts) + 1, np.int64), empty)
    letters = codes[inside]
    begins = np.ones(len(inside), np.bool_)
    single = alone[letters]
    begins[1:] = (inside[1:] != inside[:-1] + 1) | single[1:] | single[:-1]
    firsts = np.flatnonzero(begins)
    lengths = np.diff(firsts, append=len(letters))
    places = np.arange(len(letters)) - np.repeat(firsts, lengths)
    factors = _random("letter", _PLACES)
    weighted = letters.astype(np.uint64) * factors[places % _PLACES] + (places // _PLACES).astype(
        np.uint64
    )
    hashes = mix(np.add.reduceat(weighted, firsts))
    starts = np.searchsorted(inside[firsts], ends)
    return Words(hashes, np.concatenate([[0], starts]), lengths)


def _find_ends(texts: Sequence[str], codes: U32) -> I64:
    lengths = np.array([len(text) for text in texts], np.int64)
    if lengths.sum() + len(texts) - 1 != len(codes):
        lengths = np.array([len(text.lower()) for text in texts], np.int64)
    return np.cumsum(lengths + 1) - 1


def digest_words(words: Words) -> U64:
    """Two checksums of each text's words in their order: [texts, 2]. Equal texts have equal
    ones.
    """
    counts = np.diff(words.starts)
    found = np.zeros((len(counts), 2), np.uint64)
    if len(words.hashes):
        places = np.arange(len(words.hashes)) - np.repeat(words.starts[:-1], counts)
        for number, name in enumerate(("first", "second")):
            salt = _random(name, 2)
            spread = mix(places.astype(np.uint64) * salt[0] + words.hashes * salt[1])
            found[:, number] = mix(_sum_each(spread, words.starts))
    return found


def _sum_each(values: U64, starts: I64) -> U64:
    """The sums between consecutive starts, 0 where there is nothing between."""
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    summed: U64 = total[starts[1:]] - total[starts[:-1]]
    return summed


def find_sequences(words: Words, size: int, *, short: bool = True) -> tuple[U64, I64]:
    """A number for each sequence of `size` words, and where each text's begin: [texts + 1].

    With `short`, a text of fewer words is one sequence; without, it has none.
    """
    count = len(words.hashes)
    factors = _random("place", size)
    total = np.zeros(count, np.uint64)
    ends = np.repeat(words.starts[1:], np.diff(words.starts))
    at = np.arange(count)
    for place in range(size):
        rest = count - place
        if rest <= 0:
            break
        piece = words.hashes[place:] * factors[place]
        if place:
            piece = np.where(at[:rest] + place < ends[:rest], piece, np.uint64(0))
        total[:rest] += piece
    valid = at + size <= ends
    if short:
        firsts = words.starts[:-1][np.diff(words.starts) > 0]
        valid[firsts] = True
    before = np.concatenate([[0], np.cumsum(valid)])
    return mix(total[valid]), before[words.starts]


class Banding(NamedTuple):
    """How signatures are cut into bands."""

    bands: int
    rows: int


def choose_banding(similarity: float) -> Banding:
    """The longest bands that still find `RECALL` of the pairs at a similarity."""
    for rows in range(32, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= RECALL:
            return Banding(bands, rows)
    return Banding(PERMUTATIONS, 1)


def sign(sequences: U64, starts: I64, banding: Banding) -> U64:
    """The keys of each text's bands: [bands, texts]. Texts without sequences get keys of 0."""
    count = banding.bands * banding.rows
    texts = len(starts) - 1
    factors = (_random("factor", count) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    shifts = (_random("shift", count) >> np.uint64(32)).astype(np.uint32)
    short = (sequences >> np.uint64(32)).astype(np.uint32)
    least = np.full((texts, count), np.uint32(0xFFFFFFFF), np.uint32)
    filled = np.flatnonzero(np.diff(starts))
    # One array for all blocks: new ones of this size cost five times the arithmetic.
    room = np.empty((_BLOCK, count), np.uint32)
    first = 0
    while first < len(filled):
        # Whole texts, as many as fit a block; a longer one in several.
        last = first + 1
        begin = starts[filled[first]]
        while last < len(filled) and starts[filled[last] + 1] - begin <= _BLOCK:
            last += 1
        chosen = filled[first:last]
        end = starts[chosen[-1] + 1]
        for at in range(begin, end, _BLOCK):
            part = short[at : min(end, at + _BLOCK)]
            values = np.multiply(part[:, None], factors, out=room[: len(part)])
            values += shifts
            if len(chosen) == 1:
                least[chosen[0]] = np.minimum(least[chosen[0]], values.min(axis=0))
            else:
                least[chosen] = np.minimum.reduceat(values, starts[chosen] - begin, axis=0)
        first = last
    weights = _random("band", banding.rows)
    grouped = least.reshape(texts, banding.bands, banding.rows).astype(np.uint64)
    keys = mix(
        (grouped * weights).sum(axis=2, dtype=np.uint64) + np.arange(banding.bands, dtype=np.uint64)
    )
    keys[np.diff(starts) == 0] = 0
    return np.ascontiguousarray(keys.T)


def list_unique(sequences: U64, starts: I64) -> tuple[U32, I64]:
    """Each text's different sequences as sorted 32-bit numbers, and where each text's begin."""
    short = (sequences >> np.uint64(32)).astype(np.uint64)
    owner = np.repeat(np.arange(len(starts) - 1, dtype=np.uint64), np.diff(starts))
    ordered = np.sort((owner << np.uint64(32)) | short)
    ordered = ordered[np.diff(ordered, prepend=ordered[:1] ^ np.uint64(1)) != 0]
    counts = np.bincount((ordered >> np.uint64(32)).astype(np.int64), minlength=len(starts) - 1)
    return ordered.astype(np.uint32), np.concatenate([[0], np.cumsum(counts)])


def measure_overlap(first: U32, second: U32) -> float:
    """The Jaccard similarity of two sorted arrays of different numbers."""
    if not len(first) or not len(second):
        return 0.0
    at = np.searchsorted(second, first)
    at[at == len(second)] = 0
    common = int((second[at] == first).sum())
    return common / (len(first) + len(second) - common)


def hash_text(text: str) -> int:
    """A 63-bit number of a short text, such as a user's name; never 0."""
    words = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    places = np.arange(len(words), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    total = mix((words + np.uint64(1)) * _random("text", 1)[0] + places).sum(dtype=np.uint64)
    return int(mix(np.array([total + np.uint64(len(words))]))[0] >> np.uint64(1)) or 1


def estimate_recall(similarity: float, banding: Banding) -> float:
    """The probability that banding finds a pair of a similarity."""
    return 1 - math.pow(1 - similarity**banding.rows, banding.bands)
