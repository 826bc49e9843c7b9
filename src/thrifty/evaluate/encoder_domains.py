"""One encoder beside another on a file: the passages of a text, or pairs of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thrifty.evaluate.embedder import Embedder, Vectors
from thrifty.evaluate.embeddings import (
    EmbeddingAgreement,
    LabelCorrelation,
    RankCorrelation,
    TextVectors,
    cluster_pairs,
    compare_pairs,
    compare_vectors,
    find_cosine,
    holds_pairs,
    read_pairs,
    read_passages,
)
from thrifty.types import OnProgress


@dataclass(frozen=True)
class EncoderPair:
    """A model and its reference."""

    student: Embedder
    teacher: Embedder
    folder: Path
    """Where vectors are kept."""
    window: int
    """At most so many tokens of a text."""
    on_progress: OnProgress

    def compare_on(self, path: Path, limit: int | None) -> EmbeddingAgreement:
        """How they compare on a domain, of which at most `limit` texts are used. Blocks. Raises
        `EvaluationError`.
        """
        if not holds_pairs(path):
            return self.compare_passages(path, limit)
        pairs = None if limit is None else max(1, limit // 2)
        vectors, (between, labelled) = self.compare_pairs(path, pairs)
        texts, cosine = len(vectors[1]), find_cosine(*vectors)
        return EmbeddingAgreement(texts, cosine, between, None, labelled=labelled)

    def compare_passages(self, path: Path, limit: int | None) -> EmbeddingAgreement:
        """How they compare on the passages of a text, or on the texts of a `.jsonl` file."""
        texts = TextVectors(self.folder, path, self.window, limit)
        read = partial(read_passages, path)
        return compare_vectors(*self._embed(texts, read))

    def compare_pairs(
        self, path: Path, limit: int | None = None
    ) -> tuple[tuple[Vectors, Vectors], tuple[RankCorrelation, LabelCorrelation | None]]:
        """The vectors of the different texts in a file of pairs, and how the models compare."""
        paired, scores = read_pairs(path, limit)
        # A text may stand in several pairs; each is embedded once.
        places = {text: place for place, text in enumerate(dict.fromkeys(paired))}
        order: npt.NDArray[np.int64] = np.array([places[text] for text in paired], np.int64)
        most = None if limit is None else 2 * limit
        texts = TextVectors(self.folder, path, self.window, most)
        new, old = self._embed(texts, partial(iter, places))
        return (new, old), compare_pairs(new[order], old[order], scores, cluster_pairs(order))

    def _embed(
        self, texts: TextVectors, read: Callable[[], Iterator[str]]
    ) -> tuple[Vectors, Vectors]:
        return (
            texts.embed(self.student, read, "evaluate", self.on_progress),
            texts.embed(self.teacher, read, "reference", self.on_progress),
        )
