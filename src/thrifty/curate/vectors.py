"""Rows and evaluation items with nearly the same meaning, by an encoder that the project serves.

All pairs are compared, in blocks: the cost grows with the square of the rows, some minutes for a
hundred thousand of them on two cores. Vectors are kept beside the pieces (float16), so that a build
that goes on does not compute them again; memory holds two blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thrifty.artifacts import Store
from thrifty.curate.rows import I64, Rows
from thrifty.curate.texts import join_compared
from thrifty.evaluate.embedder import Embedder, encode_text
from thrifty.evaluate.open_model import open_encoder
from thrifty.types import OnProgress, Progress, ignore_progress

BLOCK = 2048
TOKENS = 256
"""So much of a text is embedded."""
Vectors = npt.NDArray[np.float32]


def embed_rows(
    rows: Rows, embedder: Embedder, work: Path, on_progress: OnProgress = ignore_progress
) -> None:
    """Write the vectors of all rows, piece by piece; those that are there stay. Raises
    `OSError`.
    """
    begins, lengths = rows.column("begin"), rows.column("bytes")
    for piece, count in enumerate(rows.counts.tolist()):
        path = work / f"{piece:05d}.vectors.f16"
        if path.exists():
            continue
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            for start in range(0, count, BLOCK):
                first = int(rows.starts[piece]) + start
                some = range(first, first + min(BLOCK, count - start))
                texts = [
                    join_compared(rows.read_row(r, int(begins[r]), int(lengths[r]))) for r in some
                ]
                file.write(embed_texts(embedder, texts).astype(np.float16).tobytes())
                on_progress(Progress("embed", some.stop, len(rows), "rows"))
        part.rename(path)


def embed_texts(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Unit vectors: [texts, width]."""
    most = min(TOKENS, embedder.context_length)
    vectors = embedder.embed([encode_text(embedder.tokenizer, text, most) for text in texts])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


class RowVectors:
    """The vectors of all rows on disk."""

    def __init__(self, rows: Rows, work: Path, width: int) -> None:
        self._rows, self._work, self._width = rows, work, width

    def read(self, start: int, stop: int) -> Vectors:
        """The vectors of some rows: [rows, width]."""
        parts = [np.zeros((0, self._width), np.float32)]
        while start < stop:
            piece = self._rows.find_piece(start)
            end = min(stop, int(self._rows.starts[piece + 1]))
            with (self._work / f"{piece:05d}.vectors.f16").open("rb") as file:
                file.seek((start - int(self._rows.starts[piece])) * self._width * 2)
                data = file.read((end - start) * self._width * 2)
            parts.append(
                np.frombuffer(data, np.float16).reshape(-1, self._width).astype(np.float32)
            )
            start = end
        return np.concatenate(parts)


def find_alike(vectors: RowVectors, alive: npt.NDArray[np.bool_], similarity: float) -> I64:
    """For each row the number of an earlier one that stays with at least this cosine, or -1."""
    count = len(alive)
    found = np.full(count, -1, np.int64)
    for start in range(0, count, BLOCK):
        block = vectors.read(start, min(count, start + BLOCK))
        for other in range(0, start + 1, BLOCK):
            before = block if other == start else vectors.read(other, other + BLOCK)
            later, earlier = np.nonzero(block @ before.T >= similarity)
            for row, one in zip((later + start).tolist(), (earlier + other).tolist(), strict=True):
                if one < row and alive[row] and alive[one] and found[row] < 0 and found[one] < 0:
                    found[row] = one
    return found


def find_meant(
    vectors: RowVectors, count: int, items: Vectors, similarity: float
) -> list[tuple[int, int]]:
    """The rows with at least this cosine to an item, with the nearest one."""
    found = []
    for start in range(0, count if len(items) else 0, BLOCK):
        block = vectors.read(start, min(count, start + BLOCK))
        best, which = np.full(len(block), -1.0, np.float32), np.zeros(len(block), np.int64)
        for first in range(0, len(items), BLOCK):
            likeness = block @ items[first : first + BLOCK].T
            nearest = likeness.argmax(axis=1)
            value = likeness[np.arange(len(block)), nearest]
            better = value > best
            best[better], which[better] = value[better], nearest[better] + first
        found += [(int(row) + start, int(which[row])) for row in np.flatnonzero(best >= similarity)]
    return found


OpenEmbedder = Callable[[str], Embedder]


def make_opener(store: Store, on_progress: OnProgress = ignore_progress) -> OpenEmbedder:
    """Opens encoders by their names. Raises `ThriftyError`."""
    return lambda name: open_encoder(name, store, on_progress=on_progress)
