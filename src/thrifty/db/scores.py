"""Scores that a judge gave answers which chance chose, and what people say of the same answers."""

from __future__ import annotations

import msgspec
from sqlalchemy import delete, func, or_, select, update

from thrifty.db.database import Database
from thrifty.db.feedback import TRIAGE
from thrifty.db.quality_sums import read_texts_of
from thrifty.db.tables import answer_scores, feedback, requests

REVIEW = "score:review"
"""The kind of the feedback by which a person says whether an answer is good (1) or not (0)."""
LABELS = {"good": 1.0, "good example": 1.0, "not a problem": 1.0, "bad": 0.0, "real problem": 0.0}
"""Labels of the inbox that say the same."""
MAX_SCORES = 20_000
"""The newest so many are read."""


class Score(msgspec.Struct, frozen=True):
    """One scored answer."""

    id: int
    deployment: str
    version: str
    judge: str
    score: float
    """From 0 to 1; below 0: the judge said nothing usable."""
    review: float | None = None
    """What a person said who was shown answers that chance chose."""
    label: float | None = None
    """That, or a label of the inbox, whose answers chance did not choose."""


class Waiting(msgspec.Struct, frozen=True):
    """An answer that waits for the judge."""

    id: int
    prompt: str
    answer: str


def read_waiting(database: Database, deployment: str, judge: str, limit: int) -> list[Waiting]:
    """The newest answers that wait for a judge; those without texts are deleted. Raises
    `DatabaseError`.
    """
    table = answer_scores
    query = select(table.c.id).where(
        table.c.deployment == deployment, table.c.judge == judge, table.c.score.is_(None)
    )
    with database.begin() as connection:
        numbers = list(connection.execute(query.order_by(table.c.id.desc()).limit(limit)).scalars())
        found = read_texts_of(connection, numbers)
        # Those that are encrypted with a missing key are read as empty.
        texts = {number: row for number, row in found.items() if row.prompt}
        gone = [number for number in numbers if number not in texts]
        if gone:
            connection.execute(delete(table).where(table.c.id.in_(gone)))
    return [Waiting(one, texts[one].prompt, texts[one].answer) for one in numbers if one in texts]


def save_score(database: Database, number: int, score: float) -> None:
    """Write the score of an answer, if it was not erased meanwhile. Raises `DatabaseError`."""
    table = answer_scores
    with database.begin() as connection:
        connection.execute(update(table).where(table.c.id == number).values(score=score))


def drop_unscored(database: Database, before_s: float) -> None:
    """Give up answers from before a time that the judge did not come to. Raises `DatabaseError`."""
    table = answer_scores
    with database.begin() as connection:
        old = table.c.score.is_(None) & (table.c.at_s < before_s)
        connection.execute(delete(table).where(old))


def read_scores(database: Database, deployment: str | None = None) -> list[Score]:
    """The newest scores with what people say, in the order of the answers. Raises `DatabaseError`."""
    table = answer_scores
    query = select(table.c.id, table.c.deployment, table.c.version, table.c.judge, table.c.score)
    query = query.where(table.c.score.is_not(None))
    if deployment is not None:
        query = query.where(table.c.deployment == deployment)
    query = query.order_by(table.c.id.desc()).limit(MAX_SCORES)
    chosen = query.with_only_columns(table.c.id).subquery()
    said = (
        select(feedback.c.response, feedback.c.kind, feedback.c.value, feedback.c.text)
        .where(feedback.c.response.in_(select(chosen.c.id)))
        .where(or_(feedback.c.kind == REVIEW, feedback.c.kind == TRIAGE))
        .order_by(feedback.c.updated_s)
    )
    reviews: dict[int, float] = {}
    labels: dict[int, float] = {}
    with database.begin() as connection:
        rows = connection.execute(query).all()
        for one in connection.execute(said):
            if one.kind == REVIEW and one.value is not None:
                reviews[one.response] = 1.0 if one.value >= 0.5 else 0.0
            elif one.kind == TRIAGE and (one.text or "").lower() in LABELS:
                labels[one.response] = LABELS[(one.text or "").lower()]
    both = labels | reviews
    return [
        Score(
            row.id, row.deployment, row.version, row.judge, row.score,
            reviews.get(row.id), both.get(row.id),
        )
        for row in reversed(rows)
    ]  # fmt: skip


class Unreviewed(msgspec.Struct, frozen=True):
    """A scored answer that nobody has reviewed."""

    id: int
    at_s: float
    deployment: str
    version: str
    tenant: str


def list_unreviewed(
    database: Database, tenant: str | None, limit: int, *, number: int | None = None
) -> list[Unreviewed]:
    """The newest scored answers that nobody has reviewed, of one tenant or (None) of all; with
    `number` that one, reviewed or not. Raises `DatabaseError`.
    """
    table = answer_scores
    owner = func.coalesce(requests.c.tenant, "")
    query = (
        select(table.c.id, table.c.at_s, table.c.deployment, table.c.version, owner)
        .join(requests, requests.c.id == table.c.id)
        .where(table.c.score.is_not(None))
    )
    if tenant is not None:
        query = query.where(owner == tenant)
    if number is not None:
        query = query.where(table.c.id == number)
    else:
        known = select(feedback.c.id).where(
            feedback.c.kind == REVIEW, feedback.c.response == table.c.id
        )
        query = query.where(~known.exists())
    with database.begin() as connection:
        found = connection.execute(query.order_by(table.c.id.desc()).limit(limit))
        return [Unreviewed(*row) for row in found]
