"""Pairs for the paired shadow: what a user was answered, and the candidate's answer to a copy.

The gateway copies requests to the candidate (`gateway.app.shadow`) and records both texts. One pair
of a conversation counts, because its requests depend on each other. A copy that failed on the
candidate's side is lost without a judge.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select

from thrifty.db.database import Database
from thrifty.db.releases import ReleaseRow
from thrifty.db.tables import request_texts, requests
from thrifty.observe.texts import show_answer, show_prompt

MAX_PAIRS = 8
"""So many are read at a time."""
LOST = -1


@dataclass(frozen=True)
class Pair:
    """Two answers to one request."""

    shadow: int
    response: int
    conversation_id: str | None
    prompt: str
    candidate: str
    other: str
    failed: bool = False


def read_pairs(
    database: Database,
    release: ReleaseRow,
    seen_shadows: Collection[int],
    seen_conversations: Collection[str | None],
    limit: int = MAX_PAIRS,
) -> list[Pair]:
    """Pairs that were not compared yet, oldest first. Raises `DatabaseError`."""
    original = requests.alias("original")
    shown, copied = request_texts.alias("shown"), request_texts.alias("copied")
    query = (
        select(
            requests.c.id, requests.c.shadow_of, requests.c.conversation_id, requests.c.status,
            shown.c.prompt, shown.c.answer.label("other"), copied.c.answer.label("candidate"),
        )
        .join(original, original.c.id == requests.c.shadow_of)
        .join(shown, shown.c.id == original.c.id)
        .outerjoin(copied, copied.c.id == requests.c.id)
        .where(requests.c.deployment == release.deployment)
        .where(requests.c.version == release.candidate, requests.c.shadow_of.is_not(None))
        .where(requests.c.at_s >= release.created_s, original.c.status == 200)
        .where(original.c.error.is_(None), shown.c.answer != "")
        .order_by(requests.c.id)
    )  # fmt: skip
    found: list[Pair] = []
    taken: set[str | None] = set()
    with database.begin() as connection:
        for row in connection.execute(query.execution_options(yield_per=200)):
            name = row.conversation_id
            if row.id in seen_shadows or name in seen_conversations or name in taken:
                continue
            if not (row.prompt and row.other):
                continue  # encrypted, and the key is missing
            failed = row.status >= 500
            if not failed and (row.status != 200 or not row.candidate):
                continue
            taken.add(name)
            found.append(
                Pair(
                    row.id, row.shadow_of, name, show_prompt(row.prompt),
                    show_answer(row.candidate or ""), show_answer(row.other), failed,
                )
            )  # fmt: skip
            if len(found) >= limit:
                break
    return found
