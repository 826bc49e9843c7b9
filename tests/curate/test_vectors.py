"""Rows and items that mean the same, by made-up vectors on disk."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from thrifty.curate.vectors import RowVectors, find_alike, find_meant


def write_vectors(work: Path, vectors: Any, pieces: list[int]) -> RowVectors:
    """Vectors of rows in pieces of so many."""
    starts = np.concatenate([[0], np.cumsum(pieces)])
    for piece, (first, last) in enumerate(itertools.pairwise(starts)):
        (work / f"{piece:05d}.vectors.f16").write_bytes(
            vectors[first:last].astype(np.float16).tobytes()
        )
    rows: Any = SimpleNamespace(
        starts=starts, find_piece=lambda row: int(np.searchsorted(starts, row, side="right")) - 1
    )
    return RowVectors(rows, work, vectors.shape[1])


def test_an_alike_row_goes_for_an_earlier_one_that_stays(tmp_path: Path) -> None:
    angles = np.array([0.0, 1.5, 0.2, 0.4, 1.55, 3.0])
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    vectors = write_vectors(tmp_path, unit, [2, 3, 1])
    assert np.allclose(vectors.read(1, 6), unit[1:], atol=1e-3)
    alive = np.ones(6, np.bool_)
    # Row 3 resembles row 2, which goes for row 0; row 0 itself is too far from it.
    assert find_alike(vectors, alive, np.cos(0.25)).tolist() == [-1, -1, 0, -1, 1, -1]
    alive[0] = False
    assert find_alike(vectors, alive, np.cos(0.25)).tolist() == [-1, -1, -1, 2, 1, -1]
    items = np.array([[np.cos(3.05), np.sin(3.05)], [np.cos(0.1), np.sin(0.1)]], np.float32)
    assert find_meant(vectors, 6, items, np.cos(0.15)) == [(0, 1), (2, 1), (5, 0)]
    assert find_meant(vectors, 6, items[:0], 0.5) == []
