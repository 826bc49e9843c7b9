"""Answers to canary questions: one row for each question that was asked of a version."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import delete, func, insert, select

from thrifty.db.database import Database
from thrifty.db.sanitize import sanitize_values
from thrifty.db.tables import quality_answers

KEEP_S = 30 * 86400.0


class QualityAnswer(msgspec.Struct, frozen=True):
    """One answer."""

    at_s: float
    deployment: str
    version: str
    revision: str
    questions: str
    """A checksum of all the questions; others are another series."""
    question: int
    """Its place among them."""
    right: bool | None
    """None: there was no answer."""
    faults: str = ""
    """What is wrong with the answer at a glance, or why there was none."""


def save_answers(database: Database, answers: Sequence[QualityAnswer]) -> None:
    """Write answers, and delete those that are too old. Raises `DatabaseError`."""
    rows = [sanitize_values(quality_answers, msgspec.structs.asdict(one)) for one in answers]
    with database.begin() as connection:
        if rows:
            connection.execute(insert(quality_answers), rows)
        old = quality_answers.c.at_s < time.time() - KEEP_S
        connection.execute(delete(quality_answers).where(old))


def read_answers(database: Database, deployment: str | None = None) -> list[QualityAnswer]:
    """All answers, oldest first. Raises `DatabaseError`."""
    names = QualityAnswer.__struct_fields__
    query = select(*(quality_answers.c[name] for name in names)).order_by(quality_answers.c.id)
    if deployment is not None:
        query = query.where(quality_answers.c.deployment == deployment)
    with database.begin() as connection:
        return [_read(dict(row)) for row in connection.execute(query).mappings()]


def read_last_round(database: Database) -> dict[tuple[str, str], float]:
    """When each version was asked last, by deployment and label. Raises `DatabaseError`."""
    table = quality_answers
    query = select(table.c.deployment, table.c.version, func.max(table.c.at_s))
    query = query.group_by(table.c.deployment, table.c.version)
    with database.begin() as connection:
        return {(row[0], row[1]): row[2] for row in connection.execute(query)}


def _read(row: dict[str, Any]) -> QualityAnswer:
    return QualityAnswer(**row)
