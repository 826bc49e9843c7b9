"""The rows of all pieces as one table, of which only columns are in memory."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from thrifty.curate.piece_files import FACTS, Facts

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
OPEN_FILES = 64


class Rows:
    """Rows by their numbers, in the order of sources, files and records."""

    def __init__(self, work: Path, pieces: int) -> None:
        self._work = work
        self.counts = np.array([self._read_tally(n)["rows"] for n in range(pieces)], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._open: OrderedDict[str, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _read_tally(self, piece: int) -> dict[str, Any]:
        tally: dict[str, Any] = json.loads((self._work / f"{piece:05d}.json").read_text())
        return tally

    def read_tallies(self) -> Iterator[dict[str, Any]]:
        """The counts and samples of each piece."""
        for piece in range(len(self.counts)):
            yield self._read_tally(piece)

    def column(self, name: str) -> npt.NDArray[Any]:
        """One of `FACTS` for all rows."""
        shape = (len(self), *FACTS[name].shape)
        values = np.empty(shape, FACTS[name].base)
        for piece, facts in self._iterate():
            values[self.starts[piece] : self.starts[piece + 1]] = facts[name]
        return values

    def _iterate(self) -> Iterator[tuple[int, Facts]]:
        for piece in range(len(self.counts)):
            yield piece, np.load(self._work / f"{piece:05d}.facts.npy", allow_pickle=False)

    def read_persons(self) -> tuple[I64, U64]:
        """The numbers of rows, and beside each the checksum of a person whom the row is of."""
        found = [np.zeros((0, 2), np.uint64)]
        for piece, start in enumerate(self.starts[:-1]):
            data = (self._work / f"{piece:05d}.persons.u64").read_bytes()
            found.append(np.frombuffer(data, np.uint64).reshape(-1, 2) + np.array([start, 0], "u8"))
        pairs = np.concatenate(found)
        return pairs[:, 0].astype(np.int64), pairs[:, 1]

    def read_band(self, band: int) -> Iterator[tuple[int, U64]]:
        """The keys of one band: the number of the first row, and the keys of those from it on."""
        for piece, count in enumerate(self.counts):
            if count:
                file = self._file(f"{piece:05d}.bands.u64")
                data = os.pread(file.fileno(), int(count) * 8, band * int(count) * 8)
                yield int(self.starts[piece]), np.frombuffer(data, np.uint64)

    def read_unique(self, piece_row: tuple[int, int, int]) -> npt.NDArray[np.uint32]:
        """The sorted sequences of a row, by its piece, and where they stand in its file."""
        piece, begin, count = piece_row
        file = self._file(f"{piece:05d}.unique.u32")
        return np.frombuffer(os.pread(file.fileno(), count * 4, begin * 4), np.uint32)

    def find_piece(self, row: int) -> int:
        """The piece of a row."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def read_line(self, row: int, begin: int, length: int) -> bytes:
        """The bytes of a row, whose place in its piece's file is known."""
        file = self._file(f"{self.find_piece(row):05d}.rows.jsonl")
        return os.pread(file.fileno(), length, begin)

    def read_row(self, row: int, begin: int, length: int) -> dict[str, Any]:
        """A row, decoded."""
        value: dict[str, Any] = msgspec.json.decode(self.read_line(row, begin, length))
        return value

    def _file(self, name: str) -> Any:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if len(self._open) >= OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[name] = (self._work / name).open("rb")
        return self._open[name]

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()
