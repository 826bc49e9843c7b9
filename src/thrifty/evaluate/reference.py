"""A reference model's predictions on a text, recorded so that it does not run for each candidate.

For each token: the k likeliest next tokens and their log-probabilities, the remaining probability
mass, and the log-probability of the token that follows in the text. A folder contains

    meta.json       what was recorded
    tokens.bin      the windows' tokens, uint32
    windows.bin     the number of tokens in each window, uint32; written last: it makes a window
        valid
    records.bin     one record of fixed size for each prediction
    counted.bin     one byte for each prediction: whether it counts
    exact.bin       for a few predictions, the whole vocabulary's log-probabilities, float16

Windows are appended and can be read in any order. What a killed run left after the last valid
window is truncated. With k = 64 and a vocabulary of at most 65,536 tokens, a record takes 264
bytes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from thrifty.errors import EvaluationError
from thrifty.evaluate.scorer import Logprobs, Ranker, TopTokens
from thrifty.evaluate.windows import BoolArray, TokenArray, TokenWindow
from thrifty.files import write_atomically
from thrifty.types import OnProgress, Progress, ignore_progress

FORMAT_VERSION = 2
"""Increase it when the files change."""
STEPS_PER_NAT = 2048
"""Log-probabilities are stored as multiples of 1/2048, from 0 down to -31.99."""
MOST_STEPS = 65_535
EXACT_EVERY = 64
"""One of this many predictions is recorded in full, until there are `EXACT_COUNT`."""
EXACT_COUNT = 256
SYNC_EVERY = 16
"""Windows between two syncs to disk."""


@dataclass(frozen=True)
class ReferenceMeta:
    """The model, the text and the settings of a record."""

    identity: str
    label: str
    text: str
    text_sha256: str
    window: int
    k: int
    vocab_size: int
    limit: int | None
    vocabulary_sha256: str
    templates_sha256: str = ""
    """Of the chat templates that conversations are rendered by; empty for plain text."""
    form: int = FORMAT_VERSION


@dataclass(frozen=True)
class Window:
    """One recorded window of T tokens."""

    number: int
    tokens: TokenArray
    counted: BoolArray
    """Which predictions count, [T - 1]."""
    ids: TokenArray
    """[T - 1, k]."""
    logprobs: Logprobs
    """[T - 1, k]."""
    tail: Logprobs
    """The probability mass of all other tokens, [T - 1]."""
    target: Logprobs
    """The log-probability of the token that follows, [T - 1]."""
    exact_rows: list[int]
    """The predictions that were recorded in full."""
    exact: Logprobs
    """[rows, vocabulary]."""


def record_type(vocab_size: int, k: int) -> np.dtype[Any]:
    """The layout of one record."""
    ids = "<u2" if vocab_size <= 65_536 else "<u4"
    return np.dtype(
        [("target", "<f4"), ("tail", "<f4"), ("ids", ids, (k,)), ("steps", "<u2", (k,))]
    )


def open_record(folder: Path) -> ReferenceRecord:
    """The record in a folder. Raises `EvaluationError`."""
    try:
        meta = ReferenceMeta(**json.loads((folder / "meta.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise EvaluationError(f"{folder} contains no reference: {error}") from None
    return ReferenceRecord(folder, meta)


class ReferenceRecord:
    """The recorded predictions of one reference, in a folder."""

    def __init__(self, folder: Path, meta: ReferenceMeta) -> None:
        """Open or create the record in a folder. Raises `EvaluationError` if it is of another
        `meta`.
        """
        self.folder = folder
        self.meta = meta
        self._type = record_type(meta.vocab_size, meta.k)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "meta.json"
        if path.exists():
            if json.loads(path.read_text()) != asdict(meta):
                raise EvaluationError(f"{folder} contains another reference; remove it")
        else:
            write_atomically(path, json.dumps(asdict(meta), indent=1))
        self._lengths = self._read_lengths()

    @property
    def windows(self) -> int:
        """The number of windows."""
        return len(self._lengths)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of tokens in each window."""
        return self._lengths

    @property
    def complete(self) -> bool:
        """Whether the whole text was recorded."""
        return (self.folder / "complete").exists()

    @property
    def predictions(self) -> int:
        """The number of predictions."""
        return int(np.sum(self._lengths - 1))

    @property
    def counted(self) -> BoolArray:
        """Which predictions of all windows count, [predictions]."""
        return np.fromfile(self.folder / "counted.bin", np.bool_, self.predictions)

    def extend(
        self,
        scorer: Ranker,
        windows: Iterable[TokenWindow],
        on_progress: OnProgress = ignore_progress,
        total: int = 0,
        *,
        enough: int | None = None,
        until_s: float = math.inf,
    ) -> None:
        """Run the reference over the windows that are missing, and record its predictions.

        Stop once `enough` tokens are recorded, or when `time.monotonic` is `until_s`; the record is
        then not complete, and a later call with the same windows goes on.
        """
        if self.complete:
            return
        self._cut_off()
        done = int(np.sum(self._lengths))
        kept = self.windows
        lengths = list(self._lengths)
        ended = True
        with (
            (self.folder / "records.bin").open("ab") as records,
            (self.folder / "tokens.bin").open("ab") as tokens_file,
            (self.folder / "counted.bin").open("ab") as counted_file,
            (self.folder / "exact.bin").open("ab") as exact,
            (self.folder / "windows.bin").open("ab") as ends,
        ):
            files = (records, tokens_file, counted_file, exact, ends)
            before = self.predictions
            for number, window in enumerate(windows):
                if number < kept:
                    continue
                if (enough is not None and done >= enough) or time.monotonic() >= until_s:
                    ended = False
                    break
                tokens = window.tokens
                rows = exact_rows(before, len(tokens) - 1)
                ranked = scorer.rank(tokens, self.meta.k, rows)
                records.write(self._pack(ranked).tobytes())
                tokens_file.write(tokens.astype("<u4").tobytes())
                counted_file.write(window.counted.tobytes())
                exact.write(ranked.full.astype("<f2").tobytes())
                _flush(files[:-1])
                ends.write(np.array([len(tokens)], "<u4").tobytes())
                _flush(files[-1:])
                if number % SYNC_EVERY == SYNC_EVERY - 1:
                    for file in files:
                        os.fsync(file.fileno())
                lengths.append(len(tokens))
                before += len(tokens) - 1
                done += len(tokens)
                on_progress(Progress("reference", done, total, "tokens"))
            for file in files:
                os.fsync(file.fileno())
        self._lengths = np.array(lengths, np.int64)
        if ended:
            (self.folder / "complete").touch()

    def read(self, first: int = 0) -> Iterator[Window]:
        """Yield the windows from number `first` on."""
        lengths = self._lengths
        token_at, before = int(lengths[:first].sum()), int((lengths[:first] - 1).sum())
        vocab, size = self.meta.vocab_size, self._type.itemsize
        with (
            (self.folder / "records.bin").open("rb") as records,
            (self.folder / "tokens.bin").open("rb") as tokens_file,
            (self.folder / "counted.bin").open("rb") as counted_file,
            (self.folder / "exact.bin").open("rb") as exact,
        ):
            for number in range(first, len(lengths)):
                length = int(lengths[number])
                tokens_file.seek(4 * token_at)
                tokens = np.frombuffer(tokens_file.read(4 * length), "<u4").astype(np.int64)
                records.seek(size * before)
                packed = np.frombuffer(records.read(size * (length - 1)), self._type)
                counted_file.seek(before)
                counted = np.frombuffer(counted_file.read(length - 1), np.bool_)
                rows = exact_rows(before, length - 1)
                exact.seek(2 * vocab * count_exact(before))
                full = np.frombuffer(exact.read(2 * vocab * len(rows)), "<f2")
                yield Window(
                    number, tokens, counted, packed["ids"].astype(np.int64),
                    packed["steps"].astype(np.float32) / np.float32(-STEPS_PER_NAT),
                    packed["tail"].copy(), packed["target"].copy(), rows,
                    full.astype(np.float32).reshape(len(rows), vocab),
                )  # fmt: skip
                token_at += length
                before += length - 1

    def _pack(self, ranked: TopTokens) -> npt.NDArray[Any]:
        if not np.isfinite(ranked.target).all():
            raise EvaluationError(
                f"{self.meta.label} computes log-probabilities that are not finite; its weights "
                "are damaged"
            )
        packed = np.zeros(len(ranked.ids), self._type)
        packed["ids"] = ranked.ids
        steps = np.rint(ranked.logprobs * -STEPS_PER_NAT)
        packed["steps"] = np.clip(steps, 0, MOST_STEPS)
        mass = np.exp(ranked.logprobs.astype(np.float64)).sum(axis=1)
        packed["tail"] = np.maximum(0.0, 1.0 - mass)
        packed["target"] = ranked.target
        return packed

    def _read_lengths(self) -> npt.NDArray[np.int64]:
        path = self.folder / "windows.bin"
        data = path.read_bytes() if path.exists() else b""
        return np.frombuffer(data[: len(data) // 4 * 4], "<u4").astype(np.int64)

    def _cut_off(self) -> None:
        """Truncate what follows the last valid window."""
        count = self.predictions
        for name, size in (
            ("windows.bin", 4 * self.windows),
            ("tokens.bin", 4 * int(self._lengths.sum())),
            ("records.bin", self._type.itemsize * count),
            ("counted.bin", count),
            ("exact.bin", 2 * self.meta.vocab_size * count_exact(count)),
        ):
            path = self.folder / name
            if not path.exists():
                continue
            if path.stat().st_size < size:
                raise EvaluationError(
                    f"{path} is damaged; remove {self.folder}, and it will be recorded again"
                )
            os.truncate(path, size)


def exact_rows(before: int, count: int) -> list[int]:
    """Which of `count` predictions, after `before` others, are recorded in full."""
    first = -before % EXACT_EVERY
    rows = range(first, count, EXACT_EVERY)
    return [row for row in rows if (before + row) // EXACT_EVERY < EXACT_COUNT]


def count_exact(predictions: int) -> int:
    """How many of the first `predictions` are recorded in full."""
    return min(EXACT_COUNT, -(-predictions // EXACT_EVERY))


def _flush(files: Iterable[IO[bytes]]) -> None:
    for file in files:
        file.flush()
