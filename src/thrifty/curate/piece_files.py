"""What is written of a piece of a source.

NNNNN.rows.jsonl    the rows that are kept so far, with their provenance
NNNNN.facts.npy     a record of `FACTS` for each of them
NNNNN.bands.u64     the keys of their bands: [bands, rows]
NNNNN.unique.u32    the sequences of each row, and of the parts that are learned, sorted, by which
near-duplicates are verified
NNNNN.persons.u64   whose the rows are: [pairs, 2], the number of a row and a person's checksum
NNNNN.json          counts, samples and set-aside records; it is written last
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from thrifty.curate.read import Record, encode
from thrifty.curate.recipe import Recipe
from thrifty.curate.sketch import (
    I64,
    U64,
    Banding,
    Words,
    digest_words,
    find_sequences,
    find_words,
    hash_text,
    list_unique,
    sign,
)
from thrifty.curate.texts import (
    LEARNED,
    Row,
    find_asked,
    find_question,
    join_compared,
    list_learned,
)

FACTS = np.dtype([
    ("digest", "<u8", 2), ("conversation", "<u8"), ("time", "<f8"), ("tokens", "<i4"),
    ("language", "S8"), ("label", "i1"), ("source", "<i4"), ("begin", "<i8"),
    ("bytes", "<i4"), ("unique", "<i8"), ("unique_count", "<i4"),
    ("learned", "<i8"), ("learned_counts", "<i4", LEARNED),
])  # fmt: skip
"""What later stages know of a row: checksums of its words, its groups, time (NaN: none) and length,
and where its bytes and its sequences stand in the piece's files."""
Facts = npt.NDArray[Any]
SAMPLES = 3
"""Samples of each reason in a piece."""


@dataclass
class Tally:
    """What happened in one piece."""

    records: int = 0
    removed: dict[str, Counter[str]] = field(default_factory=dict)
    """By stage, by reason."""
    changed: Counter[str] = field(default_factory=Counter)
    """How many rows a step changed."""
    unread: Counter[str] = field(default_factory=Counter)
    """How many users, conversations and times are of a kind that is not read, by their field."""
    languages: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    leaks: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0

    def remove(self, stage: str, reason: str, excerpt: str, provenance: Record) -> None:
        """Count a removed row, and keep the first few of each reason."""
        counts = self.removed.setdefault(stage, Counter())
        counts[reason] += 1
        if counts[reason] <= SAMPLES:
            self.samples.append(
                {"stage": stage, "reason": reason, "text": excerpt, "provenance": dict(provenance)}
            )


class PieceFiles:
    """The files of one piece; it is whole once its counts are there."""

    def __init__(self, work: Path, number: int, banding: Banding | None) -> None:
        self._base = work / f"{number:05d}"
        self._banding = banding
        self._rows = (work / f"{number:05d}.rows.jsonl").open("wb")
        self._unique = (work / f"{number:05d}.unique.u32").open("wb")
        self._facts: list[Facts] = []
        self._bands: list[npt.NDArray[np.uint64]] = []
        self._persons: list[tuple[int, int]] = []
        self._begin = self._unique_count = self._count = 0

    def add(
        self,
        batch: list[tuple[Row, dict[str, Any]]],
        digests: npt.NDArray[np.uint64],
        words: Words,
        recipe: Recipe,
        tally: Tally,
    ) -> None:
        """Write the rows of a batch. Raises `OSError`."""
        facts = np.zeros(len(batch), FACTS)
        facts["digest"] = digests
        for number, (row, known) in enumerate(batch):
            provenance = row["provenance"]
            provenance["tokens" if recipe.length.tokenizer else "words"] = known["tokens"]
            line = encode(row)
            question = find_question(row) or join_compared(row)
            facts[number]["conversation"] = known["conversation"] or hash_text(question)
            self._persons += [(self._count + number, one) for one in known["persons"]]
            facts[number]["time"] = known["time"]
            facts[number]["tokens"] = known["tokens"]
            facts[number]["source"] = known["source"]
            facts[number]["language"] = provenance.get("language", "").encode()[:8]
            facts[number]["label"] = row.get("label", False)
            facts[number]["begin"], facts[number]["bytes"] = self._begin, len(line)
            self._rows.write(line)
            self._begin += len(line)
        if self._banding is not None:
            near = recipe.deduplicate.near
            assert near is not None
            sequences, starts = find_sequences(words, near.words)
            keys = sign(sequences, starts, self._banding)
            learned = [list_learned(row) for row, _ in batch]
            asked = [find_asked(parts[0]) for parts in learned]
            questions = digest_words(find_words(asked, symbols=True))[:, 0]
            # Other questions, or answers with other labels, are no duplicates, whatever else they
            # share.
            self._bands.append(keys + questions + (facts["label"] > 0).astype(np.uint64))
            facts["unique"], facts["unique_count"] = self._write_unique(sequences, starts)
            parts = find_words([part for parts in learned for part in parts])
            begins, counts = self._write_unique(*find_sequences(parts, near.words))
            facts["learned"] = begins[::LEARNED]
            facts["learned_counts"] = counts.reshape(-1, LEARNED)
        self._facts.append(facts)
        self._count += len(batch)
        tally.rows += len(batch)

    def _write_unique(self, sequences: U64, starts: I64) -> tuple[I64, I64]:
        """Write the different sequences of each text; returns where they begin, and how many."""
        unique, ends = list_unique(sequences, starts)
        self._unique.write(unique.tobytes())
        begins = self._unique_count + ends[:-1]
        self._unique_count += len(unique)
        return begins, np.diff(ends)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._unique.close()

    def finish(self, tally: Tally) -> None:
        """Write the rest; the piece is whole once its counts are there. Raises `OSError`."""
        self._rows.close()
        self._unique.close()
        facts = np.concatenate(self._facts) if self._facts else np.zeros(0, FACTS)
        self._base.with_suffix(".persons.u64").write_bytes(
            np.array(self._persons, np.uint64).tobytes()
        )
        np.save(self._base.with_suffix(".facts.npy"), facts, allow_pickle=False)
        if self._bands:
            self._base.with_suffix(".bands.u64").write_bytes(
                np.concatenate(self._bands, axis=1).tobytes()
            )
        done = self._base.with_suffix(".json.part")
        done.write_bytes(msgspec.json.encode(vars(tally)))
        done.rename(self._base.with_suffix(".json"))
