"""Rows that say the same: the first of them stays, exactly or nearly.

A near-duplicate shares a band of its MinHash signature with an earlier row, and both are then
compared by all of their sequences, so that what is removed is as similar as was asked for. What is
asked last and each answer are compared by themselves as well: rows on one long passage, or with the
same answers the other way round, teach different things. A row goes only for one that stays: chains
of rows that resemble their neighbours do not collapse into one. Keys are sorted in parts of bounded
size; what stays in memory are some tens of bytes a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from thrifty.curate.rows import I64, Rows
from thrifty.curate.sketch import choose_banding, measure_overlap

PART_ROWS = 1_000_000
"""So many keys are sorted at once: 16 MB."""
COMPARED_ROWS = 16
"""In a band that many rows share, each is compared with so many of the first."""
KEPT_PAIRS = 2_000_000
_HELD_ROWS = 256
Alive = npt.NDArray[np.bool_]


def find_exact(rows: Rows) -> I64:
    """For each row the number of an earlier one with the same words, or -1."""
    found = np.full(len(rows), -1, np.int64)
    digests = rows.column("digest")
    parts = _count_parts(len(rows))
    for part in range(parts):
        mine = np.flatnonzero(digests[:, 0] % np.uint64(parts) == part)
        own = digests[mine]
        order = np.lexsort((mine, own[:, 1], own[:, 0]))
        ordered, numbers = own[order], mine[order]
        begins = np.ones(len(numbers), np.bool_)
        begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        firsts = numbers[np.flatnonzero(begins)][np.cumsum(begins) - 1]
        found[numbers[~begins]] = firsts[~begins]
    return found


def find_near(rows: Rows, alive: Alive, similarity: float) -> I64:
    """For each row the number of an earlier one that stays and is at least so similar, or -1. Only
    rows that are `alive` are looked at.
    """
    found = np.full(len(rows), -1, np.int64)
    later, earlier = _find_candidates(rows, alive, similarity)
    if not len(later):
        return found
    begins, counts = rows.column("unique"), rows.column("unique_count")
    part_begins, part_counts = rows.column("learned"), rows.column("learned_counts")

    @lru_cache(_HELD_ROWS)
    def read(row: int) -> npt.NDArray[np.uint32]:
        return rows.read_unique((rows.find_piece(row), int(begins[row]), int(counts[row])))

    @lru_cache(_HELD_ROWS)
    def read_parts(row: int) -> list[npt.NDArray[np.uint32]]:
        place = (rows.find_piece(row), int(part_begins[row]), int(part_counts[row].sum()))
        return np.split(rows.read_unique(place), np.cumsum(part_counts[row])[:-1])

    def alike(first: npt.NDArray[np.uint32], second: npt.NDArray[np.uint32]) -> bool:
        if not len(first) and not len(second):
            return True
        return measure_overlap(first, second) >= similarity

    # Ascending, so that whether the earlier row stays is known.
    for row, other in zip(later.tolist(), earlier.tolist(), strict=True):
        if found[row] >= 0 or found[other] >= 0:
            continue
        few, many = sorted((counts[row], counts[other]))
        if few < similarity * many:
            continue  # no two sets of these sizes are that similar
        if alike(read(row), read(other)) and all(map(alike, read_parts(row), read_parts(other))):
            found[row] = other
    return found


def _find_candidates(rows: Rows, alive: Alive, similarity: float) -> tuple[I64, I64]:
    """Pairs of rows that share a band: the later and the earlier ones, ascending."""
    held: list[npt.NDArray[np.uint64]] = []
    count = 0
    for band in range(choose_banding(similarity).bands):
        for pairs in _find_pairs(rows, alive, band):
            held.append(pairs)
            count += len(pairs)
            if count > KEPT_PAIRS:
                held = [np.unique(np.concatenate(held))]
                count = 0
    if not held:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pairs = np.unique(np.concatenate(held))
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(
        np.int64
    )


def _find_pairs(rows: Rows, alive: Alive, band: int) -> Iterator[npt.NDArray[np.uint64]]:
    """The pairs of one band as numbers: the later row in the upper half, the earlier in the
    lower.
    """
    parts = _count_parts(len(rows))
    for part in range(parts):
        keys, numbers = _collect(rows, alive, band, part, parts)
        order = np.argsort(keys, kind="stable")
        keys, numbers = keys[order], numbers[order]
        for distance in range(1, COMPARED_ROWS + 1):
            # With neighbours, and below with the first of each group.
            if distance >= len(keys):
                break
            same = keys[distance:] == keys[:-distance]
            if not same.any():
                break
            yield _join(numbers[distance:][same], numbers[:-distance][same])
        begins = np.ones(len(keys), np.bool_)
        begins[1:] = keys[1:] != keys[:-1]
        firsts = (
            np.flatnonzero(begins)[np.cumsum(begins) - 1] if len(keys) else np.zeros(0, np.int64)
        )
        far = np.flatnonzero(np.arange(len(keys)) - firsts > COMPARED_ROWS)
        for place in range(COMPARED_ROWS):
            if not len(far):
                break
            yield _join(numbers[far], numbers[firsts[far] + place])


def _join(later: I64, earlier: I64) -> npt.NDArray[np.uint64]:
    joined: npt.NDArray[np.uint64] = (later.astype(np.uint64) << np.uint64(32)) | earlier.astype(
        np.uint64
    )
    return joined


def _collect(
    rows: Rows, alive: Alive, band: int, part: int, parts: int
) -> tuple[npt.NDArray[np.uint64], I64]:
    keys, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for first, found in rows.read_band(band):
        mine = alive[first : first + len(found)] & (found > 1)  # 0 and 1: a row without words
        if parts > 1:
            mine &= found % np.uint64(parts) == part
        at = np.flatnonzero(mine)
        keys.append(found[at])
        numbers.append(at + first)
    return np.concatenate(keys), np.concatenate(numbers)


def _count_parts(count: int) -> int:
    return max(1, math.ceil(count / PART_ROWS))
