"""What a judge said of conversations while a release was in its canary: one row for each."""

from __future__ import annotations

from sqlalchemy import insert, select

from thrifty.db.database import Database
from thrifty.db.tables import release_ratings


def save_rating(
    database: Database, release_id: int, conversation_id: str, response: int | None, score: float
) -> None:
    """Write a score; one that is known stays. `response` is None where nothing could be judged.
    Raises `DatabaseError`.
    """
    table = release_ratings
    known = (table.c.release_id == release_id) & (table.c.conversation_id == conversation_id)
    with database.begin() as connection:
        if connection.execute(select(table.c.score).where(known)).first() is None:
            values = {
                "release_id": release_id, "conversation_id": conversation_id,
                "response": response, "score": score,
            }  # fmt: skip
            connection.execute(insert(table).values(values))


def read_ratings(database: Database, release_id: int) -> dict[str, float]:
    """The score of each conversation, below 0 where the judge could say nothing. Raises
    `DatabaseError`.
    """
    table = release_ratings
    query = select(table.c.conversation_id, table.c.score).where(table.c.release_id == release_id)
    with database.begin() as connection:
        return {row.conversation_id: row.score for row in connection.execute(query)}
