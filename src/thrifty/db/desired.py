"""The desired state in the database: read, changed, and its history.

Writers take turns, and each says which change it has read last: one that decided on an older state is
refused, reads again and decides anew (`change_desired` does that). A change of weights takes effect
in the same transaction: gateways see it within their poll, whether a controller runs or not. All
other changes are the controller's to carry out.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from thrifty.db.audit import record_act
from thrifty.db.changes import note_change
from thrifty.db.database import Database
from thrifty.db.desired_state import (
    DesiredDeployment,
    DesiredService,
    DesiredState,
    check_deployment,
    decode_deployment,
    decode_service,
    differ_in_shares_only,
    encode_desired,
)
from thrifty.db.fleet import set_shares
from thrifty.db.sanitize import sanitize_values
from thrifty.db.tables import desired, desired_changes
from thrifty.db.text_keys import note_source
from thrifty.errors import ControlError, DatabaseError, StaleStateError

SERVICE = ""
"""The name under which the state of the service itself is kept."""
AUTOSCALE = "autoscale"
RESTART, DRAIN = "restart", "drain"
COPIES = "copies"
"""Copies of requests end with the release that made them."""
KINDS = ("apply", "traffic", "scale", "rollback", "release", RESTART, DRAIN, AUTOSCALE, COPIES)
NOT_TAKEN_BACK = frozenset({AUTOSCALE, RESTART, DRAIN, COPIES})
"""Changes that a rollback passes over: what users get is the same before and after."""
AUTOSCALE_KEEP = 20
"""So many changes by the autoscaler are kept of each deployment; it may make many."""
MAX_TRIES = 20
"""For `change_desired`: other writers that came first, in a row."""
_LOOK_BACK = 2 * AUTOSCALE_KEEP

Also = Callable[[Connection], None]
"""Writes in the transaction of a change."""


def do_nothing(connection: Connection) -> None:
    """An `Also` for changes to which nothing belongs."""


@dataclass(frozen=True)
class Desired:
    """All that is wanted, read in one transaction."""

    service: DesiredService | None
    deployments: dict[str, DesiredDeployment]
    change_id: int
    """The newest change; 0 where there was none."""


@dataclass(frozen=True)
class DesiredChange:
    """One deployment's new state, or, with the name `SERVICE`, that of the service itself."""

    name: str
    state: DesiredState | None
    """None: the deployment is removed."""


@dataclass(frozen=True)
class PastChange:
    """One row of the history."""

    id: int
    at_s: float
    name: str
    kind: str
    who: str
    why: str
    state: DesiredState | None


def read_desired(database: Database) -> Desired:
    """All that is wanted. Raises `DatabaseError`, also where a row cannot be understood."""
    with database.begin() as connection:
        return _read(connection)


def read_desired_change(database: Database) -> int:
    """The id of the newest change, 0 where there was none; reading it is cheap."""
    with database.begin() as connection:
        return read_newest_change(connection)


def read_newest_change(connection: Connection) -> int:
    """As `read_desired_change`, in the caller's transaction."""
    return int(connection.execute(select(func.max(desired_changes.c.id))).scalar() or 0)


def write_desired(
    database: Database,
    changes: Sequence[DesiredChange],
    *,
    read_change_id: int,
    kind: str,
    who: str,
    why: str,
    also: Also = do_nothing,
) -> int:
    """Write new states, all or none, with a row of the history for each name that differs. `also`
    writes what belongs to them, in the same transaction, whether anything differs or not.

    `read_change_id` is the `change_id` of the state that the caller decided on. Returns the id of
    the newest change, which is an old one where nothing differs. Raises `StaleStateError` where
    another writer came first, `ControlError` for a state that makes no sense, `DatabaseError`.
    """
    assert kind in KINDS, kind
    for change in changes:
        _check(change)
    with database.begin() as connection:
        # First: it makes writers wait for each other, and gateways look.
        note_change(connection)
        before = _read(connection)
        if before.change_id != read_change_id:
            raise StaleStateError(
                f"the desired state was changed meanwhile (change {before.change_id}, "
                f"this one was made for {read_change_id}); read it again"
            )
        newest = before.change_id
        for change in changes:
            old: DesiredState | None = (
                before.service if change.name == SERVICE else before.deployments.get(change.name)
            )
            if change.state == old:
                continue
            newest = _write_one(connection, change, kind=kind, who=who, why=why)
            if kind == AUTOSCALE:
                _prune(connection, change.name)
            new = change.state
            if (
                isinstance(old, DesiredDeployment)
                and isinstance(new, DesiredDeployment)
                and differ_in_shares_only(old, new)
            ):
                shares = {v.label: (v.weight, v.shadow) for v in new.versions}
                set_shares(connection, change.name, shares)
        also(connection)
        return newest


def change_desired(
    database: Database,
    decide: Callable[[Desired], Sequence[DesiredChange]],
    *,
    kind: str,
    who: str,
    why: str,
    also: Also = do_nothing,
) -> int:
    """Read, let `decide` say what changes, and write; again where another writer came first.

    `decide` and `also` may be called several times. Returns and raises as `write_desired`.
    """
    for _ in range(MAX_TRIES - 1):
        state = read_desired(database)
        try:
            return write_desired(
                database, decide(state), read_change_id=state.change_id, kind=kind, who=who,
                why=why, also=also,
            )  # fmt: skip
        except StaleStateError:
            continue
    state = read_desired(database)
    return write_desired(
        database, decide(state), read_change_id=state.change_id, kind=kind, who=who, why=why,
        also=also,
    )  # fmt: skip


def read_history(database: Database, name: str | None, limit: int = 20) -> list[PastChange]:
    """The newest changes of one deployment, of the service itself (`SERVICE`), or of all (None), the
    newest first.
    """
    query = select(desired_changes).order_by(desired_changes.c.id.desc()).limit(limit)
    if name is not None:
        query = query.where(desired_changes.c.name == name)
    with database.begin() as connection:
        rows = connection.execute(query).mappings().all()
    return [
        PastChange(**{**row, "state": _decode_or_none(row["name"], row["state"])}) for row in rows
    ]


def previous_state(database: Database, name: str) -> DesiredState | None:
    """The state before the newest change of a deployment; None: it did not exist then. Changes of
    counts by the autoscaler are not gone back to.

    Written as a new change it takes the newest one back, and done again it brings it again. Raises
    `ControlError` where there is nothing to go back to.
    """
    return previous_change(database, name).state


def previous_change(database: Database, name: str) -> PastChange:
    """The change that made `previous_state`. Raises `ControlError` as that does."""
    history = read_history(database, name, _LOOK_BACK)
    newest = find_deliberate(history)
    if newest is None or newest + 1 >= len(history):
        what = f"the deployment {name!r}" if name != SERVICE else "the service"
        raise ControlError(
            f"{what} has no earlier state to go back to: "
            + ("it was changed once only" if history else "it is not known")
        )
    return history[newest + 1]


def find_deliberate(history: Sequence[PastChange]) -> int | None:
    """The place of the newest change that a rollback takes back; None where there is none."""
    places = (place for place, change in enumerate(history) if change.kind not in NOT_TAKEN_BACK)
    return next(places, None)


def _prune(connection: Connection, name: str) -> None:
    """Delete the oldest changes of a deployment by the autoscaler."""
    mine = (desired_changes.c.name == name) & (desired_changes.c.kind == AUTOSCALE)
    kept = (
        select(desired_changes.c.id)
        .where(mine)
        .order_by(desired_changes.c.id.desc())
        .limit(1)
        .offset(AUTOSCALE_KEEP - 1)
    )
    oldest = connection.execute(kept).scalar()
    if oldest is not None:
        connection.execute(delete(desired_changes).where(mine & (desired_changes.c.id < oldest)))


def _check(change: DesiredChange) -> None:
    state = change.state
    if change.name == SERVICE:
        if not isinstance(state, DesiredService):
            raise ControlError("the empty name is the service's own, which cannot be removed")
        return
    if state is None:
        return
    if not isinstance(state, DesiredDeployment) or state.name != change.name:
        raise ControlError(f"the state of {change.name!r} is not that of a deployment so called")
    check_deployment(state)


def _write_one(
    connection: Connection, change: DesiredChange, *, kind: str, who: str, why: str
) -> int:
    text = None if change.state is None else encode_desired(change.state)
    row = {
        "at_s": time.time(), "name": change.name, "kind": kind, "who": who, "why": why,
        "state": text,
    }  # fmt: skip
    # `who` and `why` come from outside.
    result = connection.execute(
        insert(desired_changes).values(sanitize_values(desired_changes, row))
    )
    assert result.inserted_primary_key is not None
    change_id = int(result.inserted_primary_key[0])
    digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
    record_act(
        connection, f"change.{kind}", who, deployment=change.name, change=change_id, state=digest
    )
    if isinstance(change.state, DesiredService):
        note_source(connection, change.state.text_keys)
    where = desired.c.name == change.name
    if text is None:
        connection.execute(delete(desired).where(where))
        return change_id
    values = {"name": change.name, "state": text, "change_id": change_id}
    if connection.execute(update(desired).where(where).values(values)).rowcount == 0:
        connection.execute(insert(desired).values(values))
    return change_id


def _read(connection: Connection) -> Desired:
    # The change is read first: rows may then be newer than it says, never older, and who decides
    # on them is refused at worst. (PostgreSQL shows each statement what was committed before it.)
    change_id = read_newest_change(connection)
    rows: Sequence[Mapping[Any, Any]] = (
        connection.execute(select(desired).order_by(desired.c.name)).mappings().all()
    )
    service: DesiredService | None = None
    deployments: dict[str, DesiredDeployment] = {}
    for row in rows:
        state = _decode(row["name"], row["state"])
        if isinstance(state, DesiredService):
            service = state
        else:
            deployments[row["name"]] = state
    return Desired(service, deployments, change_id)


def _decode_or_none(name: str, text: str | None) -> DesiredState | None:
    return None if text is None else _decode(name, text)


def _decode(name: str, text: str) -> DesiredState:
    try:
        return decode_service(text) if name == SERVICE else decode_deployment(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        what = f"of the deployment {name!r}" if name != SERVICE else "of the service"
        raise DatabaseError(
            f"the desired state {what} cannot be understood ({error}); was it written by a newer "
            "Thrifty, or by hand? Apply the spec again with --reset"
        ) from None
