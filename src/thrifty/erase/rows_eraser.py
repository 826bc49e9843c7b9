"""One person's rows: the request log with its texts, feedback, and cached answers."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import delete, select

from thrifty.db.cache import add_purge
from thrifty.db.changes import note_change
from thrifty.db.feedback import FeedbackFilter, delete_feedback, list_feedback
from thrifty.db.releases import read_held, write_held
from thrifty.db.request_log import RecordedText, permit_deletion
from thrifty.db.request_queries import RequestFilter, list_requests, read_texts
from thrifty.db.tables import (
    answer_checks,
    answer_scores,
    answer_vectors,
    feedback,
    release_pairs,
    release_ratings,
    request_texts,
    requests,
    unrolled_thumbs,
)
from thrifty.erase.person import Work, in_pieces
from thrifty.observe.texts import NO_KEY
from thrifty.openai.conversations import read_hash

PAGE = 1000


def erase_texts(work: Work) -> int:
    """Delete the person's texts, so that nobody makes rows or copies of them any more."""
    gone = 0
    for some in in_pieces(work.person.responses):
        with work.database.begin() as connection:
            texts = delete(request_texts).where(request_texts.c.id.in_(some))
            gone += connection.execute(texts).rowcount
    return gone


def erase_requests(work: Work) -> int:
    """Delete the person's requests, and those that name nobody in the person's conversations."""
    person = work.person
    # The named ones last: they lead to the others, should this be interrupted.
    nameless = person.responses - person.asked
    for some in [*in_pieces(nameless), *in_pieces(person.asked)]:
        with work.database.begin() as connection, permit_deletion(connection):
            connection.execute(delete(requests).where(requests.c.id.in_(some)))
    return len(person.responses)


def erase_checks(work: Work) -> int:
    """Delete what detectors, judges and encoders made of the answers to the person. The sums by version stay:
    they do not tell whose answers were counted.
    """
    gone = 0
    for some in in_pieces(work.person.responses):
        with work.database.begin() as connection:
            for table in (answer_checks, answer_scores, answer_vectors):
                gone += connection.execute(delete(table).where(table.c.id.in_(some))).rowcount
    return gone


def collect_checks(work: Work) -> list[Any]:
    """What detectors and judges found in the answers to the person."""
    found: list[Any] = []
    for some in in_pieces(work.person.asked):
        with work.database.begin() as connection:
            for table in (answer_checks, answer_scores):
                rows = connection.execute(select(table).where(table.c.id.in_(some))).mappings()
                found += [dict(row) for row in rows]
    return found


def collect_requests(work: Work) -> list[Any]:
    """The person's requests with their texts."""
    found: list[Any] = []
    for tenant in sorted(work.person.tenants):
        wanted = RequestFilter(tenant=tenant, user=work.person.user)
        before, more = None, True
        while more:
            rows, more = list_requests(work.database, wanted, before=before, limit=PAGE)
            for row in rows:
                texts = read_texts(work.database, row["id"])
                found.append(row | _describe(texts))
            before = rows[-1]["id"] if rows else None
    return found


def _describe(texts: RecordedText | None) -> dict[str, Any]:
    if texts is None:
        return {}
    return texts._asdict() if texts.readable else {"texts_fault": NO_KEY}


def erase_feedback(work: Work) -> int:
    """Delete what the person said, and what others said of the person's responses."""
    person = work.person
    own = feedback.c.end_user == person.user
    query = select(feedback.c.id).where(own, feedback.c.tenant.in_(person.tenants))
    with work.database.begin() as connection:
        doomed = set(connection.execute(query).scalars())
        for column, values in (
            (feedback.c.response, person.responses),
            (feedback.c.conversation_id, person.conversations),
        ):
            for some in in_pieces(values):
                found = connection.execute(select(feedback.c.id).where(column.in_(some)))
                doomed.update(found.scalars())
    for some in in_pieces(doomed):
        with work.database.begin() as connection:
            delete_feedback(connection, some)
    for column, values in (
        (unrolled_thumbs.c.response, person.responses),
        (unrolled_thumbs.c.conversation_id, person.conversations),
    ):
        for some in in_pieces(values):
            with work.database.begin() as connection:
                connection.execute(delete(unrolled_thumbs).where(column.in_(some)))
    return len(doomed)


def collect_feedback(work: Work) -> list[Any]:
    """What the person said."""
    found: list[Any] = []
    for tenant in sorted(work.person.tenants):
        wanted = FeedbackFilter(tenant=tenant, user=work.person.user)
        before, more = None, True
        while more:
            rows, more = list_feedback(work.database, wanted, before=before, limit=PAGE)
            found += [vars(row) for row in rows]
            before = rows[-1].id if rows else None
    return found


def erase_comparisons(work: Work) -> int:
    """Delete what judges said of the person's answers, and the person's conversations among those
    that stay on their versions.
    """
    person, gone = work.person, 0
    for column, values in (
        (release_pairs.c.response, person.responses),
        (release_pairs.c.shadow, person.responses),
        (release_pairs.c.conversation_id, person.conversations),
        (release_ratings.c.response, person.responses),
        (release_ratings.c.conversation_id, person.conversations),
    ):
        for some in in_pieces(values):
            with work.database.begin() as connection:
                found = delete(column.table).where(column.in_(some))
                gone += connection.execute(found).rowcount
    hashes = {read_hash(name) for name in person.conversations}
    with work.database.begin() as connection:
        for held in read_held(connection):
            if held.hashes & hashes:
                gone += len(held.hashes & hashes)
                kept = msgspec.structs.replace(held, hashes=held.hashes - hashes)
                write_held(connection, kept)
                note_change(connection)
    return gone


def purge_caches(work: Work) -> int:
    """Have every gateway, and Redis, forget the answers to the tenant that is meant, or all answers:
    cached ones do not tell who asked, and the request log need not hold their requests.
    """
    # Requests without a key have the empty tenant, which a purge cannot name.
    purge = add_purge(work.database, tenant=work.tenant or None, who=work.who)
    whose = "all tenants" if purge.tenant is None else f"the tenant {purge.tenant!r}"
    work.notes.append(f"every gateway, and Redis, forgets the cached answers of {whose}")
    return 0


def collect_nothing(work: Work) -> list[Any]:
    """Nothing that could be told to be the person's."""
    return []


def encode(value: Any) -> bytes:
    """A collected value as JSON."""
    return msgspec.json.encode(value)
