"""Releases in the database: rows, what was decided, compared pairs, and conversations that stay.

A release is decided on by the controller and by operators. Each says on which edition of the row it
decided, and is refused where another one came first. What a release does to the weights is written
in the same transaction (`write_desired` with `also`), so that a process that is killed leaves a
release whose row and weights agree.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from thrifty.db.audit import record_act
from thrifty.db.changes import note_change
from thrifty.db.database import Database
from thrifty.db.sanitize import sanitize_values
from thrifty.db.tables import held_conversations, release_events, release_pairs, releases
from thrifty.errors import ControlError

log = logging.getLogger(__name__)

RUNNING, PAUSED = "running", "paused"
PROMOTED, ROLLED_BACK, ABORTED, ENDED = "promoted", "rolled_back", "aborted", "ended"
ACTIVE = (RUNNING, PAUSED)
"""States of a release that owns the weights."""


class ReleaseChanged(ControlError):
    """Somebody else has decided on the release meanwhile."""


class Step(msgspec.Struct, frozen=True):
    """A time during which the candidate had one share."""

    share: float
    """From 0 to 1."""
    weights: dict[str, float]
    since_s: float
    until_s: float | None = None
    counts: bool = True
    """False where a jump of the clock made its times useless."""
    after: int = 0
    """Requests up to this number were there when the clock was set; their times say nothing."""


class Record(msgspec.Struct, frozen=True):
    """What a release was told, and what it has done."""

    revision: str
    """The candidate's when the release began."""
    plan: dict[str, Any]
    before: dict[str, float]
    """The weights before, by label."""
    weights: dict[str, float]
    """The weights that the release has set."""
    shadow: float = 0.0
    """The share of copies that it has set."""
    shadow_before: float = 0.0
    stage: int = 0
    """An index into the plan's stages."""
    stage_active_s: float = 0.0
    """`active_s` when the stage began."""
    steps: tuple[Step, ...] = ()
    verdict: str | None = None
    message: str = ""
    paused_by: str | None = None
    who: str = ""
    why: str = ""


class ReleaseRow(msgspec.Struct, frozen=True):
    """One release."""

    id: int
    deployment: str
    candidate: str
    """The label of the version that is released."""
    state: str
    edition: int
    created_s: float
    updated_s: float
    active_s: float
    record: Record
    figures: dict[str, Any]

    @property
    def is_active(self) -> bool:
        """Whether it owns the weights."""
        return self.state in ACTIVE


class ReleaseEvent(msgspec.Struct, frozen=True):
    """One decision, with what it was decided on."""

    id: int
    release_id: int
    at_s: float
    kind: str
    who: str
    why: str
    figures: dict[str, Any]


class Event(msgspec.Struct, frozen=True):
    """A decision to be written."""

    kind: str
    who: str
    why: str
    figures: dict[str, Any] = {}


def create_release(
    connection: Connection, deployment: str, candidate: str, record: Record, event: Event
) -> int:
    """Write a new release; returns its id. Raises `ControlError` where one is under way."""
    now_s = time.time()
    values = sanitize_values(
        releases,
        {
            "deployment": deployment, "candidate": candidate, "active_on": deployment,
            "state": RUNNING, "edition": 1, "created_s": now_s, "updated_s": now_s,
            "active_s": 0.0, "record": _dump(record), "figures": "{}",
        },
    )  # fmt: skip
    try:
        with connection.begin_nested():
            result = connection.execute(insert(releases).values(values))
    except IntegrityError:
        raise refuse_second(find_active(connection, deployment)) from None
    assert result.inserted_primary_key is not None
    release_id = int(result.inserted_primary_key[0])
    add_event(connection, release_id, event)
    record_act(connection, "release.start", event.who, deployment=deployment, release=release_id)
    return release_id


def refuse_second(active: ReleaseRow | None) -> ControlError:
    """The error that says which release is in the way."""
    if active is None:
        return ControlError("another release began at the same moment; try again")
    return ControlError(
        f"release {active.id} of {active.candidate} to {active.deployment!r} is under way "
        f"({active.state}); there is one at a time. To end it: thrifty release abort {active.id}"
    )


def update_release(
    connection: Connection,
    release: ReleaseRow,
    event: Event,
    *,
    state: str | None = None,
    record: Record | None = None,
    active_s: float | None = None,
) -> None:
    """Write what was decided on `release`, with its event. Raises `ReleaseChanged` where somebody
    else has decided meanwhile.
    """
    new_state = state or release.state
    values: dict[str, Any] = {
        "state": new_state,
        "edition": release.edition + 1,
        "updated_s": time.time(),
        "active_on": release.deployment if new_state in ACTIVE else None,
        "record": _dump(record or release.record),
    }
    if active_s is not None:
        values["active_s"] = active_s
    if event.figures:
        values["figures"] = _dump(event.figures)
    where = (releases.c.id == release.id) & (releases.c.edition == release.edition)
    values = sanitize_values(releases, values)
    if connection.execute(update(releases).where(where).values(values)).rowcount == 0:
        raise ReleaseChanged(
            f"release {release.id} has changed meanwhile; look at it again: thrifty releases"
        )
    add_event(connection, release.id, event)
    record_act(
        connection, f"release.{event.kind}", event.who, deployment=release.deployment,
        release=release.id,
    )  # fmt: skip


def add_event(connection: Connection, release_id: int, event: Event) -> None:
    """Write an event."""
    values = {
        "release_id": release_id, "at_s": time.time(), "kind": event.kind, "who": event.who,
        "why": event.why, "figures": _dump(event.figures),
    }  # fmt: skip
    connection.execute(insert(release_events).values(sanitize_values(release_events, values)))


def save_progress(
    database: Database, release: ReleaseRow, active_s: float, figures: Mapping[str, Any]
) -> None:
    """Write how long it has run and what was measured, which is no decision. Raises
    `DatabaseError`.
    """
    where = (releases.c.id == release.id) & (releases.c.edition == release.edition)
    values = {"active_s": active_s, "figures": _dump(dict(figures)), "updated_s": time.time()}
    with database.begin() as connection:
        connection.execute(update(releases).where(where).values(values))


def find_active(connection: Connection, deployment: str) -> ReleaseRow | None:
    """The release that owns the weights of a deployment."""
    query = select(releases).where(releases.c.active_on == deployment)
    row = connection.execute(query).mappings().first()
    return None if row is None else _read(row)


def read_active(database: Database, deployment: str | None = None) -> list[ReleaseRow]:
    """The releases that are under way, without those whose rows cannot be read. Raises
    `DatabaseError`.
    """
    query = select(releases).where(releases.c.active_on.is_not(None)).order_by(releases.c.id)
    if deployment is not None:
        query = query.where(releases.c.active_on == deployment)
    found = []
    with database.begin() as connection:
        for row in connection.execute(query).mappings():
            try:
                found.append(_read(row))
            except msgspec.MsgspecError as error:
                _tell_damaged(row["id"], str(error))
    return found


@functools.cache
def _tell_damaged(release_id: int, fault: str) -> None:
    """Log a fault once, however often the row is read."""
    log.error("release %d cannot be read and is left alone: %s", release_id, fault)


def read_releases(
    database: Database, deployment: str | None = None, limit: int = 50
) -> list[ReleaseRow]:
    """The newest releases, the newest first. Raises `DatabaseError`."""
    query = select(releases).order_by(releases.c.id.desc()).limit(limit)
    if deployment is not None:
        query = query.where(releases.c.deployment == deployment)
    with database.begin() as connection:
        return [_read(row) for row in connection.execute(query).mappings()]


def read_release(database: Database, release_id: int) -> ReleaseRow:
    """One release. Raises `ControlError` where there is none."""
    with database.begin() as connection:
        query = select(releases).where(releases.c.id == release_id)
        row = connection.execute(query).mappings().first()
    if row is None:
        raise ControlError(f"there is no release {release_id}; thrifty releases lists them")
    return _read(row)


def read_events(database: Database, release_id: int) -> list[ReleaseEvent]:
    """What was decided in a release, oldest first. Raises `DatabaseError`."""
    query = select(release_events).where(release_events.c.release_id == release_id)
    with database.begin() as connection:
        rows = connection.execute(query.order_by(release_events.c.id)).mappings().all()
    return [ReleaseEvent(**{**row, "figures": msgspec.json.decode(row["figures"])}) for row in rows]


# Compared pairs


def save_outcomes(
    database: Database, release_id: int, outcomes: Iterable[tuple[int, int, str | None, int]]
) -> None:
    """Write compared pairs: the copy's number, the original's, the conversation, the outcome. Those
    that are known stay as they are. Raises `DatabaseError`.
    """
    ours = release_pairs.c.release_id == release_id
    last = select(func.coalesce(func.max(release_pairs.c.place), 0)).where(ours)
    with database.begin() as connection:
        place = int(connection.execute(last).scalar_one())
        for shadow, response, conversation_id, outcome in outcomes:
            where = ours & (release_pairs.c.shadow == shadow)
            if connection.execute(select(release_pairs.c.shadow).where(where)).first() is None:
                place += 1
                values = {
                    "release_id": release_id, "shadow": shadow, "response": response,
                    "conversation_id": conversation_id, "outcome": outcome, "place": place,
                }  # fmt: skip
                connection.execute(insert(release_pairs).values(values))


def read_outcomes(database: Database, release_id: int) -> list[tuple[int, str | None, int]]:
    """The pairs in the order in which they were compared: the copy's number, the conversation, the
    outcome.
    """
    table = release_pairs
    query = select(table.c.shadow, table.c.conversation_id, table.c.outcome)
    query = query.where(table.c.release_id == release_id).order_by(table.c.place, table.c.shadow)
    with database.begin() as connection:
        return [(row[0], row[1], row[2]) for row in connection.execute(query)]


# Conversations that stay on their versions


class HeldConversations(msgspec.Struct, frozen=True):
    """Conversations that go on by older weights."""

    deployment: str
    updated_s: float
    keep_s: float
    weights: dict[str, float]
    hashes: frozenset[str]
    """The hashes in the conversations' ids."""


def write_held(connection: Connection, held: HeldConversations) -> None:
    """Replace the held conversations of a deployment. Gateways read them with the fleet; the caller
    must note the change.
    """
    drop_held(connection, held.deployment)
    values = {
        "deployment": held.deployment, "updated_s": held.updated_s, "keep_s": held.keep_s,
        "weights": _dump(held.weights), "conversations": "\n".join(sorted(held.hashes)),
    }  # fmt: skip
    connection.execute(insert(held_conversations).values(values))


def add_held(
    database: Database, deployment: str, weights: Mapping[str, float], hashes: frozenset[str]
) -> None:
    """Hold more conversations of a deployment, which a gateway saw under way when a step changed
    the weights. Without effect where it no longer goes by the older `weights`. Raises
    `DatabaseError`.
    """
    with database.begin() as connection:
        note_change(connection)  # one gateway after another
        for held in read_held(connection):
            if held.deployment == deployment and held.weights == weights:
                more = held.hashes | hashes
                fresh = msgspec.structs.replace(held, hashes=more, updated_s=time.time())
                write_held(connection, fresh)


def drop_held(connection: Connection, deployment: str) -> None:
    """Let the conversations of a deployment follow the current weights."""
    table = held_conversations
    connection.execute(delete(table).where(table.c.deployment == deployment))


def read_held(connection: Connection) -> list[HeldConversations]:
    """The held conversations of all deployments."""
    return [_read_held(row) for row in connection.execute(select(held_conversations))]


def _read_held(row: Any) -> HeldConversations:
    hashes = row.conversations.split("\n") if row.conversations else ()
    weights = msgspec.json.decode(row.weights)
    return HeldConversations(row.deployment, row.updated_s, row.keep_s, weights, frozenset(hashes))


def count_held(database: Database) -> int:
    """How many deployments hold conversations; cheap."""
    with database.begin() as connection:
        query = select(func.count()).select_from(held_conversations)
        return int(connection.execute(query).scalar_one())


def describe_release(release: ReleaseRow, stages: Sequence[str] = ()) -> dict[str, Any]:
    """A release as JSON shows it. `stages` are the names of the plan's stages."""
    record = release.record
    return {
        "id": release.id, "deployment": release.deployment, "candidate": release.candidate,
        "state": release.state, "verdict": record.verdict, "message": record.message,
        "stage": stages[record.stage] if record.stage < len(stages) else str(record.stage),
        "share": record.steps[-1].share if record.steps else 0.0, "weights": record.weights,
        "before": record.before, "plan": record.plan, "figures": release.figures,
        "created_s": release.created_s, "updated_s": release.updated_s,
        "active_s": release.active_s, "who": record.who, "why": record.why,
    }  # fmt: skip


def _read(row: Mapping[Any, Any]) -> ReleaseRow:
    return ReleaseRow(
        id=row["id"], deployment=row["deployment"], candidate=row["candidate"],
        state=row["state"], edition=row["edition"], created_s=row["created_s"],
        updated_s=row["updated_s"], active_s=row["active_s"],
        record=msgspec.json.decode(row["record"], type=Record),
        figures=msgspec.json.decode(row["figures"]),
    )  # fmt: skip


def _dump(value: Any) -> str:
    return msgspec.json.encode(value).decode()
