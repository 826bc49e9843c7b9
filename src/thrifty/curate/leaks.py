"""Finds rows that hold what models are judged by: exactly, or lightly paraphrased.

Three rules, the first that holds:

    13 words     a row shares 13 consecutive words with an item, as is usual in the field
    whole        a row holds all words of a shorter item, in their order
    paraphrase   half of an item's sequences of 3 words stand near each other in a row, most of its
                 words do too, rare ones counting more, and so do all names and numbers: a question
                 with one name for another is none

Items of fewer than 5 words recur by chance and are not compared. Paraphrases that share few words
are found by embeddings only (`vectors`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thrifty.curate.sketch import I64, U64, Words, find_sequences, find_words
from thrifty.curate.texts import COMPARED
from thrifty.data.overlap import SEQUENCE_WORDS, SHORTEST_WORDS
from thrifty.errors import DataError
from thrifty.evaluate.conversations import read_records
from thrifty.evaluate.windows import read_texts

SHORT_SEQUENCE = 3
CONTAINED = 0.5
"""The share of an item's sequences of 3 words that a paraphrase keeps, at least."""
COVERED = 0.75
"""The share of an item's words that it keeps, weighted by how rare they are among all items."""
COMMON_SHARE, COMMON_ITEMS = 0.005, 20
"""Sequences that more items have say nothing about any of them."""
BATCH_ITEMS = 256
_FRAME = re.compile(
    r"\A\s*(?:Q|Question):\s*(.*?)\s*(?:\n\s*(?:A|Answer):.*)?\Z", re.DOTALL | re.IGNORECASE
)
"""What tasks write around a question."""
_NAME = re.compile(r"(?<=[\w,;] )[A-Z]\w*|\b\w*[0-9]\w*")
"""A word with a capital letter within a sentence, or with a digit."""


class Item(NamedTuple):
    """Something that models are judged by."""

    set: str
    where: str
    text: str


class Leak(NamedTuple):
    """A row that holds an item."""

    row: int
    """The number of the row in its batch."""
    item: int
    rule: str


@dataclass(frozen=True)
class LeakIndex:
    """What is looked for, as sorted numbers."""

    sets: list[str]
    where: list[str]
    """The set and the place of each item."""
    sequences: dict[int, tuple[U64, I64]]
    """By their length in words: sorted sequences, and the item of each."""
    short: tuple[U64, I64]
    """Sorted sequences of 3 words with their items; each as often as items have it."""
    short_counts: I64
    """How many of them each item has."""
    words: tuple[U64, npt.NDArray[np.float64], I64]
    """Each item's different words, their weights, and where each item's begin."""
    word_counts: I64
    names: tuple[U64, I64]
    """Each item's names and numbers, and where each item's begin."""

    @property
    def count(self) -> int:
        """How many items there are."""
        return len(self.sets)


def read_items(name: str, path: Path) -> Iterator[Item]:
    """What a file judges by: questions, what is said in conversations, or texts. Raises
    `EvaluationError`.
    """
    if path.suffix != ".jsonl":
        for number, text in enumerate(read_texts(path), 1):
            yield Item(name, f"part {number}", text)
        return
    for record, where in read_records(path):
        for text in _list_texts(record):
            yield Item(name, where.rpartition(", ")[2], text)


def _list_texts(record: dict[str, object]) -> Iterator[str]:
    for part in ("messages", "prompt", "chosen", "rejected", "completion"):
        messages = record.get(part)
        for one in messages if isinstance(messages, list) else ():
            said = isinstance(one, dict) and one.get("role") in COMPARED
            if said and isinstance(one.get("content"), str):
                yield one["content"]
    paired = record.get("texts")
    yield from (one for one in (paired if isinstance(paired, list) else ()) if isinstance(one, str))
    for key in ("question", "prompt", "query", "context", "text", "content", "passage"):
        value = record.get(key)
        if isinstance(value, str):
            framed = _FRAME.fullmatch(value)
            yield framed[1] if framed else value


def make_index(items: Iterable[Item]) -> LeakIndex:
    """The index of all items. Of items that share a sequence of words, the first has it. Holds
    their sequences in memory: some 40 bytes a word.
    """
    sets: list[str] = []
    where: list[str] = []
    hashes: list[U64] = []
    names: list[U64] = []
    held: list[Item] = []

    def flush() -> None:
        words = find_words([one.text for one in held])
        named = find_words([" ".join(_NAME.findall(one.text)) for one in held])
        for number, one in enumerate(held):
            own = words.hashes[words.starts[number] : words.starts[number + 1]]
            if len(own) >= SHORTEST_WORDS:
                sets.append(one.set)
                where.append(one.where)
                hashes.append(own)
                names.append(named.hashes[named.starts[number] : named.starts[number + 1]])
        held.clear()

    for item in items:
        held.append(item)
        if len(held) >= BATCH_ITEMS:
            flush()
    if held:
        flush()
    everything, starts = _join(hashes)
    counts = np.diff(starts)
    words = Words(everything, starts, np.ones(len(everything), np.int64))
    short, short_counts = _index_short(words)
    return LeakIndex(
        sets, where, _index_sequences(words, counts), short, short_counts, _weigh_words(words),
        counts, _join(names),
    )  # fmt: skip


def _join(parts: list[U64]) -> tuple[U64, I64]:
    """All parts in one array, and where each begins: [parts + 1]."""
    starts = np.concatenate([[0], np.cumsum([len(one) for one in parts], dtype=np.int64)])
    return np.concatenate([np.zeros(0, np.uint64), *parts]), starts


def _index_sequences(words: Words, counts: I64) -> dict[int, tuple[U64, I64]]:
    found = {}
    for size in range(SHORTEST_WORDS, SEQUENCE_WORDS + 1):
        wanted = counts == size if size < SEQUENCE_WORDS else counts >= size
        if not wanted.any():
            continue
        sequences, starts = find_sequences(words, size, short=False)
        owners = np.repeat(np.arange(len(counts)), np.diff(starts))
        mine = wanted[owners]
        values, first, held_by = np.unique(sequences[mine], return_index=True, return_counts=True)
        telling = held_by <= _most_items(len(counts))
        found[size] = (values[telling], owners[mine][first][telling])
    return found


def _most_items(items: int) -> float:
    """Sequences that more items have are set phrases."""
    return max(COMMON_ITEMS, COMMON_SHARE * items)


def _index_short(words: Words) -> tuple[tuple[U64, I64], I64]:
    sequences, starts = find_sequences(words, SHORT_SEQUENCE, short=False)
    items = len(starts) - 1
    owners = np.repeat(np.arange(items), np.diff(starts))
    order = np.lexsort((owners, sequences))
    sequences, owners = sequences[order], owners[order]
    again = np.zeros(len(sequences), np.bool_)
    again[1:] = (sequences[1:] == sequences[:-1]) & (owners[1:] == owners[:-1])
    sequences, owners = sequences[~again], owners[~again]
    _, which, held_by = np.unique(sequences, return_inverse=True, return_counts=True)
    telling = held_by[which] <= _most_items(items)
    sequences, owners = sequences[telling], owners[telling]
    return (sequences, owners), np.bincount(owners, minlength=items)


def _weigh_words(words: Words) -> tuple[U64, npt.NDArray[np.float64], I64]:
    items = len(words.starts) - 1
    owners = np.repeat(np.arange(items), np.diff(words.starts))
    order = np.lexsort((words.hashes, owners))
    hashes, owners = words.hashes[order], owners[order]
    again = np.zeros(len(hashes), np.bool_)
    again[1:] = (hashes[1:] == hashes[:-1]) & (owners[1:] == owners[:-1])
    hashes, owners = hashes[~again], owners[~again]
    _, which, held_by = np.unique(hashes, return_inverse=True, return_counts=True)
    weights = np.log((items + 1) / held_by)[which] if items else np.zeros(0)
    starts = np.searchsorted(owners, np.arange(items + 1))
    return hashes, weights, starts


def find_leaks(
    index: LeakIndex, words: Words, accepted: Collection[str] = frozenset()
) -> list[Leak]:
    """The rows of a batch that hold an item, each once, in their order. A row is told to hold an
    item of the sets `accepted` only if it holds none of others, whose items come first in the
    index.
    """
    found: dict[int, Leak] = {}

    def note(leak: Leak) -> None:
        known = found.setdefault(leak.row, leak)
        if index.sets[known.item] in accepted and index.sets[leak.item] not in accepted:
            found[leak.row] = leak

    for size in sorted(index.sequences, reverse=True):
        values, items = index.sequences[size]
        if not len(values):
            continue
        sequences, starts = find_sequences(words, size, short=False)
        at = np.minimum(np.searchsorted(values, sequences), len(values) - 1)
        hits = np.flatnonzero(values[at] == sequences)
        rows = np.searchsorted(starts, hits, side="right") - 1
        rule = "13 words" if size == SEQUENCE_WORDS else "whole"
        for row, item in zip(rows.tolist(), items[at[hits]].tolist(), strict=True):
            note(Leak(row, item, rule))
    for leak in _find_paraphrases(index, words):
        note(leak)
    return [found[row] for row in sorted(found)]


def _find_paraphrases(index: LeakIndex, words: Words) -> Iterator[Leak]:
    values, items = index.short
    sequences, starts = find_sequences(words, SHORT_SEQUENCE, short=False)
    low = np.searchsorted(values, sequences, side="left")
    many = np.searchsorted(values, sequences, side="right") - low
    hits = np.flatnonzero(many)
    if not len(hits):
        return
    counts = many[hits]
    places = np.repeat(hits, counts)
    offsets = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    item = items[np.repeat(low[hits], counts) + offsets]
    row = np.searchsorted(starts, places, side="right") - 1
    pairs, pair_of, pair_counts = np.unique(
        row * index.count + item, return_inverse=True, return_counts=True
    )
    wanted = index.short_counts[pairs % index.count]
    for number in np.flatnonzero((pair_counts >= CONTAINED * wanted) & (wanted >= 2)):
        the_row, the_item = divmod(int(pairs[number]), index.count)
        mine = np.flatnonzero(pair_of == number)
        at = places[mine] - starts[the_row]
        if _is_paraphrase(index, words, the_row, the_item, at, sequences[places[mine]]):
            yield Leak(the_row, the_item, "paraphrase")


def _is_paraphrase(
    index: LeakIndex, words: Words, row: int, item: int, at: I64, values: U64
) -> bool:
    """Whether some stretch of a row, twice as long as an item, has enough of it. `at` are the
    places in the row that share the sequences `values` with the item, ascending.
    """
    length = 2 * int(index.word_counts[item])
    hashes, weights, starts = index.words
    own = slice(starts[item], starts[item + 1])
    total = weights[own].sum()
    names = index.names[0][index.names[1][item] : index.names[1][item + 1]]
    for first in range(len(at)):
        last = int(np.searchsorted(at, at[first] + length))
        if len(np.unique(values[first:last])) < CONTAINED * index.short_counts[item]:
            continue
        begin = int(words.starts[row]) + int(at[first])
        begin = max(int(words.starts[row]), begin - length // 4)
        near = words.hashes[begin : min(int(words.starts[row + 1]), begin + 2 * length)]
        if not np.isin(names, near).all():
            continue
        if weights[own][np.isin(hashes[own], near)].sum() >= COVERED * total:
            return True
    return False


def save_index(index: LeakIndex, path: Path) -> None:
    """Write an index to a file of arrays. Raises `OSError`."""
    facts = {"sets": index.sets, "where": index.where, "sizes": sorted(index.sequences)}
    arrays: dict[str, npt.NDArray[Any]] = {
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
        "short": index.short[0], "short_items": index.short[1],
        "short_counts": index.short_counts, "words": index.words[0], "weights": index.words[1],
        "word_starts": index.words[2], "word_counts": index.word_counts,
        "names": index.names[0], "name_starts": index.names[1],
    }  # fmt: skip
    for size, (values, items) in index.sequences.items():
        arrays |= {f"values_{size}": values, f"items_{size}": items}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_index(path: Path) -> LeakIndex:
    """Read what `save_index` wrote. Raises `DataError`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            return LeakIndex(
                facts["sets"],
                facts["where"],
                {n: (arrays[f"values_{n}"], arrays[f"items_{n}"]) for n in facts["sizes"]},
                (arrays["short"], arrays["short_items"]),
                arrays["short_counts"],
                (arrays["words"], arrays["weights"], arrays["word_starts"]),
                arrays["word_counts"],
                (arrays["names"], arrays["name_starts"]),
            )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
