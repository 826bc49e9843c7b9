"""How an encoder's embeddings compare with a reference's: text by text, and in their similarities.

The vectors of a text are recorded, so that an interrupted run resumes and no model runs on a text
twice. They are written and read in pieces: memory does not grow with the text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.disk import lock_file
from thrifty.errors import EvaluationError
from thrifty.evaluate.conversations import read_records
from thrifty.evaluate.embedder import Embedder, Vectors, encode_text
from thrifty.evaluate.statistics import FloatArray, jackknife, mean_of_clusters, rank_correlation
from thrifty.evaluate.windows import digest_file, read_texts
from thrifty.types import OnProgress, Progress, ignore_progress
from thrifty.units import format_bytes

CHUNK = 64
"""Texts between two syncs to disk, and between two reports of progress."""
PASSAGE_CHARS = 240
"""Plain text is split after the first sentence that ends beyond this many characters."""
SAMPLE = 512
"""Texts whose pairs are all compared: 130,816 pairs."""
GROUPS = 20
"""Groups for the jackknife that estimates the standard error of a rank correlation."""

LEAST = 6
"""The least number of texts or pairs for which ranks mean anything."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Cosine:
    """The cosine similarity between the two models' vectors of the same text, over all texts."""

    mean: float
    stderr: float
    median: float
    p5: float
    p1: float
    min: float


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation between the similarities that two models give to pairs of
    texts.
    """

    spearman: float
    stderr: float
    pairs: int


@dataclass(frozen=True)
class LabelCorrelation:
    """Spearman's rank correlation between the similarities of pairs and their scores."""

    candidate: float
    reference: float
    difference: float
    difference_stderr: float


@dataclass(frozen=True)
class EmbeddingAgreement:
    """How two encoders compare on texts, or on pairs of texts."""

    texts: int
    """Different ones."""
    cosine: Cosine | None
    """None if the vectors differ in width."""
    rank_correlation: RankCorrelation | None
    """Over all pairs of a sample of texts, or over the pairs of a domain."""
    same_nearest: float | None
    """The share of a sample's texts that have the same nearest neighbour in it by both models; None
    for pairs.
    """
    pairs: RankCorrelation | None = None
    """Over the pairs in a file."""
    labelled: LabelCorrelation | None = None


def read_passages(path: Path) -> Iterator[str]:
    """The texts of a `.jsonl` file, or passages of plain text. Raises `EvaluationError`."""
    for piece in read_texts(path):
        if path.suffix == ".jsonl":
            yield piece.strip()
            continue
        passage = ""
        for sentence in _SENTENCE_END.split(piece):
            passage = f"{passage} {sentence}".strip()
            if len(passage) >= PASSAGE_CHARS:
                yield passage
                passage = ""
        if passage:
            yield passage


def holds_pairs(path: Path) -> bool:
    """Whether the first record of a `.jsonl` file has `texts`."""
    return path.suffix == ".jsonl" and "texts" in next(read_records(path), ({}, ""))[0]


def read_pairs(path: Path, limit: int | None = None) -> tuple[list[str], list[float]]:
    """The texts of a file of pairs, in order, and the pairs' scores, if they have any; of at most
    `limit` pairs.

    Lines are `{"texts": ["one", "other"], "score": 3.5}`. Raises `EvaluationError`.
    """
    texts: list[str] = []
    scores: list[float] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if limit is not None and len(texts) >= 2 * limit:
            break
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise EvaluationError(f"{path}, line {number}: not a line of JSON") from None
        pair = record.get("texts") if isinstance(record, dict) else None
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise EvaluationError(f"{path}, line {number}: 'texts' must be two strings")
        score = record.get("score")
        if score is not None:
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise EvaluationError(f"{path}, line {number}: 'score' must be a number")
            scores.append(float(score))
        texts += pair
    if len(texts) < 2 * LEAST:
        raise EvaluationError(
            f"{path} contains {len(texts) // 2} pairs; at least {LEAST} are needed"
        )
    if scores and len(scores) != len(texts) // 2:
        raise EvaluationError(f"{path}: {len(scores)} of {len(texts) // 2} pairs have a score")
    return texts, scores


class TextVectors:
    """The vectors of one file's texts; a folder contains one file of vectors for each model."""

    def __init__(self, folder: Path, path: Path, window: int, limit: int | None) -> None:
        """Use the first `limit` texts of `path`, or pairs of texts; None: all.

        `window` is the most tokens of a text.
        """
        self._path = path
        self._window = window
        self._limit = limit
        facts = json.dumps([2, digest_file(path), window, limit, PASSAGE_CHARS])
        self._folder = folder / "embeddings" / _key(facts)
        self._count: int | None = None

    def embed(
        self,
        embedder: Embedder,
        read: Callable[[], Iterator[str]],
        step: str,
        on_progress: OnProgress = ignore_progress,
    ) -> Vectors:
        """The vectors of all texts, [texts, width], mapped from the file; computes those that are
        missing.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"{_key(embedder.identity)}.f32"
        size = 4 * embedder.width
        with lock_file(target.with_suffix(".lock")):
            done = target.stat().st_size // size if target.exists() else 0
            total = self._count_texts(read)
            if done < total:
                self._require_room(size * (total - done), total)
                kept = done // CHUNK * CHUNK
                texts = itertools.islice(read(), kept, total)
                with target.open("ab") as file:
                    file.truncate(kept * size)
                    for vectors in self._run(embedder, texts):
                        file.write(vectors.astype("<f4").tobytes())
                        file.flush()
                        os.fsync(file.fileno())
                        kept += len(vectors)
                        on_progress(Progress(step, kept, total, "texts"))
        return np.memmap(target, "<f4", "r", shape=(total, embedder.width))

    def _run(self, embedder: Embedder, texts: Iterator[str]) -> Iterator[Vectors]:
        most = min(self._window, embedder.context_length)
        while chunk := list(itertools.islice(texts, CHUNK)):
            vectors = embedder.embed([encode_text(embedder.tokenizer, one, most) for one in chunk])
            if not np.isfinite(vectors).all():
                raise EvaluationError(f"{embedder.label} computes embeddings that are not finite")
            yield vectors

    def _count_texts(self, read: Callable[[], Iterator[str]]) -> int:
        if self._count is None:
            self._count = sum(1 for _ in itertools.islice(read(), self._limit))
        if not self._count:
            raise EvaluationError(f"{self._path} contains no texts")
        return self._count

    def _require_room(self, needed: int, total: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise EvaluationError(
                f"the embeddings of {total} texts need {format_bytes(needed)}, and "
                f"{format_bytes(free)} are free at {self._folder}; free some space, or use fewer "
                "--items"
            )


def compare_vectors(candidate: Vectors, reference: Vectors) -> EmbeddingAgreement:
    """Compare two models' vectors of the same texts."""
    count = len(reference)
    cosine = find_cosine(candidate, reference)
    if count < LEAST:
        return EmbeddingAgreement(count, cosine, None, None)
    sample = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))
    new, old = (_similarities(np.asarray(side[sample])) for side in (candidate, reference))
    a, b = np.triu_indices(len(sample), 1)
    groups = min(GROUPS, len(sample))
    spearman, stderr = jackknife(
        lambda keep: rank_correlation(new[a, b][keep], old[a, b][keep]),
        [(a % groups != group) & (b % groups != group) for group in range(groups)],
    )
    for side in (new, old):
        np.fill_diagonal(side, -np.inf)
    same = float(np.mean(new.argmax(axis=1) == old.argmax(axis=1)))
    return EmbeddingAgreement(count, cosine, RankCorrelation(spearman, stderr, len(a)), same)


def find_cosine(candidate: Vectors, reference: Vectors) -> Cosine | None:
    """How near two models' vectors of the same texts are; None if they differ in width."""
    count = len(reference)
    if candidate.shape != reference.shape:
        return None
    found = np.concatenate(
        [
            cosines(candidate[at : at + CHUNK], reference[at : at + CHUNK])
            for at in range(0, count, CHUNK)
        ]
    )
    mean = mean_of_clusters(found, np.ones(count))
    median, p5, p1 = np.quantile(found, [0.5, 0.05, 0.01])
    return Cosine(mean.mean, mean.stderr, float(median), float(p5), float(p1), float(found.min()))


def compare_pairs(
    candidate: Vectors,
    reference: Vectors,
    scores: list[float],
    clusters: npt.NDArray[np.int64] | None = None,
) -> tuple[RankCorrelation, LabelCorrelation | None]:
    """Compare the similarities of pairs; the two vectors of a pair follow each other.

    `clusters` numbers the pairs that depend on each other, [pairs]; None if none do.
    """
    new, old = (cosines(side[0::2], side[1::2]) for side in (candidate, reference))
    numbers = np.arange(len(new)) if clusters is None else clusters
    groups = [numbers % GROUPS != group for group in range(min(GROUPS, int(numbers.max()) + 1))]
    spearman, stderr = jackknife(lambda keep: rank_correlation(new[keep], old[keep]), groups)
    between = RankCorrelation(spearman, stderr, len(new))
    if not scores:
        return between, None
    given = np.array(scores)
    difference, spread = jackknife(
        lambda keep: (
            rank_correlation(new[keep], given[keep]) - rank_correlation(old[keep], given[keep])
        ),
        groups,
    )
    return between, LabelCorrelation(
        rank_correlation(new, given), rank_correlation(old, given), difference, spread
    )


def cluster_pairs(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of the clusters of pairs that share texts, directly or through others, [pairs];
    each pair alone where they are too few for a standard error.

    `order` has the number of each text, the two of a pair following each other, [2 pairs].
    """
    group_of = list(range(int(order.max()) + 1))

    def find(text: int) -> int:
        while group_of[text] != text:
            group_of[text] = text = group_of[group_of[text]]
        return text

    for one, other in order.reshape(-1, 2).tolist():
        group_of[find(one)] = find(other)
    roots = [find(text) for text in order[0::2].tolist()]
    found: npt.NDArray[np.int64] = np.unique(roots, return_inverse=True)[1].astype(np.int64)
    return found if found.max() + 1 >= LEAST else np.arange(len(found))


def cosines(a: Vectors, b: Vectors) -> FloatArray:
    """The cosine similarity of each row of `a` and the same row of `b`."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    found: FloatArray = (x * y).sum(axis=1) / np.maximum(lengths, 1e-30)
    return found


def _similarities(vectors: Vectors) -> npt.NDArray[np.float64]:
    unit = vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
    found: npt.NDArray[np.float64] = unit @ unit.T
    return found


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
