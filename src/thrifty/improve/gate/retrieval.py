"""What encoders are judged by: whether a query finds the text that belongs to it among all others.

A line of a file is a row of a training, `{"query", "positive", "negatives"?}`, or a pair of texts,
`{"texts": [A, B], "score"?}`, of which B belongs to A where the score is missing or the highest of
the file. It may have tags, as a question (`items`). All texts of the file that are no queries are
searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts import NamedVersion, Store
from thrifty.errors import EvaluationError
from thrifty.evaluate.conversations import read_records
from thrifty.evaluate.embedder import Vectors
from thrifty.evaluate.embeddings import TextVectors
from thrifty.evaluate.open_model import open_encoder
from thrifty.evaluate.questions import Question
from thrifty.evaluate.run import WINDOW
from thrifty.improve.gate.items import Item, read_tags
from thrifty.types import OnProgress

FOUND = "found"
"""The metric: the text nearest to the query is the one that belongs to it."""


@dataclass(frozen=True)
class Search:
    """Queries, each with its own text as its answer, and the texts that are searched."""

    path: Path
    items: list[Item]
    texts: list[str] = field(repr=False)


def read_search(path: Path, name: str, limit: int) -> Search:
    """The first `limit` different queries of a file, and what is searched. Raises
    `EvaluationError` with the line at fault.
    """
    rows: list[tuple[str, str, list[str], Any, dict[str, str]]] = []
    for record, where in read_records(path):
        pair = _read_pair(record)
        if pair is None:
            raise EvaluationError(
                f"{where}: encoders are judged by lines with 'query' and 'positive', or 'texts'"
            )
        rows.append((*pair, record.get("score"), read_tags(record, name, where)))
    scores = [score for *_, score, _ in rows if isinstance(score, int | float)]
    found: dict[str, Item] = {}
    texts: dict[str, None] = {}
    for query, own, others, score, tags in rows:
        if len(found) >= limit and query not in found:
            continue
        texts |= dict.fromkeys((own, *others))
        if query != own and (score is None or score == max(scores)):
            found.setdefault(query, Item(Question((("user", query),), (own,)), tags))
    if not found:
        raise EvaluationError(f"{path} holds no query with a text of its own")
    return Search(path, list(found.values()), list(texts))


def _read_pair(record: Any) -> tuple[str, str, list[str]] | None:
    """A query, its text, and others that do not belong to it."""
    pair = record.get("texts")
    if not (isinstance(pair, list) and len(pair) == 2):
        pair = [record.get("query"), record.get("positive")]
    others = record.get("negatives") or []
    if not isinstance(others, list):
        return None
    if not all(isinstance(one, str) and one.strip() for one in (*pair, *others)):
        return None
    return pair[0], pair[1], others


def find_nearest(
    store: Store,
    folder: Path,
    version: NamedVersion,
    searches: Sequence[Search],
    on_progress: OnProgress,
) -> list[str]:
    """For each query of each search the nearest text by a model. Vectors are kept in `folder`.
    Blocks. Raises `EvaluationError`.
    """
    encoder = open_encoder(version.label, store, on_progress=on_progress)
    found: list[str] = []
    try:
        for one in searches:
            queries = [item.question.text for item in one.items]
            texts = list(dict.fromkeys([*queries, *one.texts]))
            kept = TextVectors(folder / "searches", one.path, WINDOW, len(texts))
            read = partial(iter, texts)
            vectors = _normalize(kept.embed(encoder, read, "evaluate", on_progress))
            places = {text: place for place, text in enumerate(texts)}
            near = vectors[[places[query] for query in queries]] @ vectors.T
            # Neither what only asks is found, nor a query by itself.
            near[:, [places[text] for text in set(texts).difference(one.texts)]] = -np.inf
            near[range(len(queries)), [places[query] for query in queries]] = -np.inf
            found += [texts[place] for place in near.argmax(axis=1)]
    finally:
        encoder.close()
    return found


def _normalize(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Vectors = np.asarray(vectors) / np.maximum(lengths, 1e-30)
    return found
