"""Embeddings of questions and answers that chance chose."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import delete, select, update

from thrifty.db.database import Database
from thrifty.db.quality_sums import read_texts_of
from thrifty.db.tables import answer_vectors, requests

Vectors = npt.NDArray[np.floating[Any]]


class Unembedded(NamedTuple):
    """An answer that waits for the encoder."""

    id: int
    prompt: str
    answer: str


class Embedded(NamedTuple):
    """An answer with its embeddings."""

    version: str
    group: str
    """Its conversation, or itself."""
    asked: Vectors
    answer: Vectors


def read_unembedded(database: Database, deployment: str, limit: int) -> list[Unembedded]:
    """The newest answers that wait for the encoder; those without texts are deleted. Raises
    `DatabaseError`.
    """
    table = answer_vectors
    query = select(table.c.id).where(table.c.deployment == deployment, table.c.answer.is_(None))
    with database.begin() as connection:
        numbers = list(connection.execute(query.order_by(table.c.id.desc()).limit(limit)).scalars())
        texts = read_texts_of(connection, numbers)
        gone = [number for number in numbers if number not in texts]
        if gone:
            connection.execute(delete(table).where(table.c.id.in_(gone)))
    return [
        Unembedded(one, texts[one].prompt, texts[one].answer) for one in numbers if one in texts
    ]


def save_vectors(database: Database, number: int, asked: Vectors, answer: Vectors) -> None:
    """Write the embeddings of one answer, if it was not erased meanwhile. Raises `DatabaseError`."""
    table = answer_vectors
    values = {"asked": _encode(asked), "answer": _encode(answer)}
    with database.begin() as connection:
        connection.execute(update(table).where(table.c.id == number).values(values))


def read_vectors(
    database: Database, deployment: str, since_s: float, until_s: float
) -> list[Embedded]:
    """The embeddings of a time, the oldest first. Raises `DatabaseError`."""
    table = answer_vectors
    query = (
        select(
            table.c.id, table.c.version, table.c.asked, table.c.answer, requests.c.conversation_id
        )
        .outerjoin(requests, requests.c.id == table.c.id)
        .where(table.c.deployment == deployment, table.c.answer.is_not(None))
        .where(table.c.at_s >= since_s, table.c.at_s < until_s)
        .order_by(table.c.id)
    )
    with database.begin() as connection:
        return [
            Embedded(
                row.version, row.conversation_id or str(row.id), _decode(row.asked),
                _decode(row.answer),
            )
            for row in connection.execute(query)
        ]  # fmt: skip


def drop_vectors(database: Database, before_s: float) -> None:
    """Delete embeddings from before a time, and those of answers that are gone. Raises
    `DatabaseError`.
    """
    kept = select(requests.c.id).where(requests.c.id == answer_vectors.c.id)
    with database.begin() as connection:
        old = (answer_vectors.c.at_s < before_s) | ~kept.exists()
        connection.execute(delete(answer_vectors).where(old))


def _encode(vector: Vectors) -> bytes:
    length = float(np.linalg.norm(vector)) or 1.0
    return (np.asarray(vector, np.float64) / length).astype("<f2").tobytes()


def _decode(data: bytes) -> Vectors:
    return np.frombuffer(data, "<f2").astype(np.float64)
