"""What is done to a release: begun, moved on, paused, promoted, rolled back, aborted.

Each act is one transaction that writes the release's row, the event with its figures, the weights,
and the conversations that stay on their versions. Whoever is killed leaves all of it or nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select

from thrifty.db.changes import note_change
from thrifty.db.database import Database
from thrifty.db.desired import COPIES, Desired, DesiredChange, PastChange, change_desired
from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.db.releases import (
    ABORTED,
    ENDED,
    PAUSED,
    PROMOTED,
    RUNNING,
    Event,
    HeldConversations,
    Record,
    ReleaseRow,
    Step,
    create_release,
    drop_held,
    find_active,
    read_active,
    read_held,
    read_release,
    read_releases,
    refuse_second,
    update_release,
    write_held,
)
from thrifty.db.tables import requests
from thrifty.errors import ControlError
from thrifty.openai.conversations import choose_version, read_hash
from thrifty.release.plan import SHADOW, ReleasePlan, dump_plan, parse_plan

MAX_HELD = 100_000
"""The newest so many conversations stay on their versions."""
KIND = "release"


def start_release(
    database: Database,
    deployment: str,
    candidate: str,
    plan: ReleasePlan,
    *,
    who: str,
    why: str = "",
    new_version: DesiredVersion | None = None,
) -> ReleaseRow:
    """Begin to release a version of a deployment. `new_version` is added to it first, where it is
    not among its versions yet. The controller carries the release out. Raises `ControlError`.
    """
    for active in read_active(database, deployment):
        raise refuse_second(active)
    made = 0
    record: Record | None = None

    def decide(state: Desired) -> list[DesiredChange]:
        nonlocal record
        there = _find_deployment(state, deployment)
        suited = plan.suit(there.family)
        _check_log(state, suited)
        if new_version is not None and there.find_version(new_version.label) is None:
            added = replace(new_version, weight=0.0, shadow=0.0)
            there = replace(there, versions=(*there.versions, added))
        _check_candidate(there, candidate)
        version = there.find_version(candidate)
        assert version is not None
        weights = {one.label: one.weight for one in there.versions}
        record = Record(
            revision=version.revision, plan=dump_plan(suited), before=weights, weights=weights,
            shadow=version.shadow, shadow_before=version.shadow, who=who, why=why,
        )  # fmt: skip
        return [DesiredChange(deployment, there)]

    def also(connection: Connection) -> None:
        nonlocal made
        active = find_active(connection, deployment)
        if active is not None:
            raise refuse_second(active)
        assert record is not None
        event = Event("start", who, why or "the plan is registered", {"plan": record.plan})
        made = create_release(connection, deployment, candidate, record, event)

    change_desired(database, decide, kind=KIND, who=who, why=f"release of {candidate}", also=also)
    return read_release(database, made)


def move_release(
    database: Database,
    release: ReleaseRow,
    stage: int,
    *,
    who: str,
    why: str,
    figures: Mapping[str, Any] | None = None,
    active_s: float | None = None,
) -> None:
    """Go on to a stage: set its share, and keep going conversations on their versions. Raises
    `ReleaseChanged`, `ControlError` and `DatabaseError`.
    """
    plan = parse_plan(release.record.plan)
    share = plan.share_of(stage)
    shadow = plan.shadow.share if plan.stages[stage] == SHADOW else release.record.shadow_before
    weights = make_weights(release.record.before, release.candidate, share)
    now_s = time.time()
    held = find_held(database, release, weights, plan.sticky, now_s) if share > 0 else None
    steps = close_steps(release.record.steps, now_s)
    last = stage == len(plan.stages) - 1
    record = msgspec.structs.replace(
        release.record, weights=weights, shadow=shadow, stage=stage,
        stage_active_s=active_s if active_s is not None else release.active_s,
        steps=(*steps, Step(share, weights, now_s)) if 0 < share < 1 else steps,
        message="", paused_by=None,
    )  # fmt: skip
    kind = "promote" if last else "next"
    event = Event(kind, who, why, {**(figures or {}), "stage": plan.stages[stage]})
    if last:
        record = msgspec.structs.replace(record, verdict=_read_verdict(figures, record))

    def also(connection: Connection) -> None:
        update_release(
            connection, release, event, state=PROMOTED if last else None, record=record,
            active_s=active_s,
        )  # fmt: skip
        if held is not None:
            write_held(connection, held)

    change_weights(database, release, weights, shadow, who, f"{kind}: {why}", also)


def end_release(
    database: Database,
    release: ReleaseRow,
    state: str,
    *,
    who: str,
    why: str,
    kind: str,
    figures: Mapping[str, Any] | None = None,
    verdict: str | None = None,
    active_s: float | None = None,
) -> None:
    """Roll back or abort: the weights are as they were before, and every conversation follows them.
    Raises as `move_release`.
    """
    before = release.record.before
    record = msgspec.structs.replace(
        release.record, weights=before, shadow=release.record.shadow_before, message=why,
        verdict=verdict or release.record.verdict, paused_by=None,
        steps=close_steps(release.record.steps, time.time()),
    )  # fmt: skip
    event = Event(kind, who, why, dict(figures or {}))

    def also(connection: Connection) -> None:
        update_release(connection, release, event, state=state, record=record, active_s=active_s)
        drop_held(connection, release.deployment)

    change_weights(
        database, release, before, release.record.shadow_before, who, f"{kind}: {why}", also
    )


def note_release(
    database: Database,
    release: ReleaseRow,
    state: str,
    *,
    who: str,
    why: str,
    kind: str,
    figures: Mapping[str, Any] | None = None,
    paused_by: str | None = None,
    verdict: str | None = None,
    record: Record | None = None,
) -> None:
    """Pause, resume, or note that a release has ended; weights stay as they are, and the copies of a
    release that has ended are again as many as before. Raises `ReleaseChanged` and `DatabaseError`.
    """
    record = msgspec.structs.replace(
        record or release.record, message=why if state != RUNNING else "", paused_by=paused_by,
        verdict=verdict or release.record.verdict,
    )  # fmt: skip
    event = Event(kind, who, why, dict(figures or {}))
    if state != ENDED:
        with database.begin() as connection:
            update_release(connection, release, event, state=state, record=record)
        return

    def also(connection: Connection) -> None:
        update_release(connection, release, event, state=state, record=record)
        drop_held(connection, release.deployment)

    def decide(desired: Desired) -> list[DesiredChange]:
        there = desired.deployments.get(release.deployment)
        if there is None:
            return []
        versions = tuple(_restore_copies(version, release) for version in there.versions)
        return [DesiredChange(release.deployment, replace(there, versions=versions))]

    change_desired(database, decide, kind=COPIES, who=who, why=f"{kind}: {why}", also=also)


def restore_copies(database: Database, past: PastChange) -> DesiredDeployment | None:
    """The deployment that an earlier change made, without the copies of a release that ran then and has
    ended: nothing would end them any more. Raises `DatabaseError`.
    """
    state = past.state
    if not isinstance(state, DesiredDeployment):
        return None
    for release in read_releases(database, state.name):
        if not release.created_s <= past.at_s <= release.updated_s:
            continue
        during = msgspec.structs.replace(
            release.record, shadow=parse_plan(release.record.plan).shadow.share
        )
        then = msgspec.structs.replace(release, record=during)
        versions = tuple(_restore_copies(version, then) for version in state.versions)
        state = replace(state, versions=versions)
    return state


def _restore_copies(version: DesiredVersion, release: ReleaseRow) -> DesiredVersion:
    """The candidate with the share of copies that it had before, unless somebody else has set another
    one; other versions as they are.
    """
    if version.label != release.candidate or version.shadow != release.record.shadow:
        return version
    return replace(version, shadow=release.record.shadow_before)


# What operators do


def pause_release(database: Database, release_id: int, *, who: str, why: str = "") -> ReleaseRow:
    """Hold the candidate's share as it is. It is rolled back all the same where it proves worse."""
    release = _require(database, release_id, RUNNING)
    reason = why or "paused by an operator"
    note_release(database, release, PAUSED, who=who, why=reason, kind="pause", paused_by="operator")
    return read_release(database, release_id)


def resume_release(database: Database, release_id: int, *, who: str, why: str = "") -> ReleaseRow:
    """Go on with a release that is paused."""
    release = _require(database, release_id, PAUSED)
    note_release(database, release, RUNNING, who=who, why=why or "resumed", kind="resume")
    return read_release(database, release_id)


def promote_release(database: Database, release_id: int, *, who: str, why: str = "") -> ReleaseRow:
    """Give the candidate all of the traffic now, whatever is known of it."""
    release = _require(database, release_id, RUNNING, PAUSED)
    last = len(parse_plan(release.record.plan).stages) - 1
    move_release(database, release, last, who=who, why=why or "promoted by an operator")
    return read_release(database, release_id)


def abort_release(database: Database, release_id: int, *, who: str, why: str = "") -> ReleaseRow:
    """End a release, with the weights that were before."""
    release = _require(database, release_id, RUNNING, PAUSED)
    reason = why or "aborted by an operator"
    end_release(database, release, ABORTED, who=who, why=reason, kind="abort")
    return read_release(database, release_id)


RELEASE_ACTS: dict[str, Callable[..., ReleaseRow]] = {
    "pause": pause_release,
    "resume": resume_release,
    "promote": promote_release,
    "abort": abort_release,
}
"""What operators do, by name. Each takes the database, the release's id, `who` and `why`."""


def override_releases(database: Database, deployment: str, *, who: str, why: str) -> int | None:
    """End the release of a deployment, because somebody sets its weights by hand; weights stay.
    Returns the release's id.
    """
    for release in read_active(database, deployment):
        note_release(database, release, ENDED, who=who, why=why, kind="override")
        return release.id
    return None


def refuse_while_active(database: Database, deployment: str, hint: str) -> None:
    """Raise `ControlError` where a release owns the weights; `hint` says what to do instead."""
    for release in read_active(database, deployment):
        raise ControlError(
            f"release {release.id} of {release.candidate} owns the weights of {deployment!r}; {hint}, "
            f"or end it first: thrifty release abort {release.id}"
        )


# Weights and conversations


def make_weights(before: Mapping[str, float], candidate: str, share: float) -> dict[str, float]:
    """The weights that give the candidate its share, from 0 to 1, and leave the others theirs in
    proportion.
    """
    others = {label: weight for label, weight in before.items() if label != candidate}
    total = sum(others.values())
    if share <= 0:
        return {**others, candidate: 0.0}
    if share >= 1:
        return {**dict.fromkeys(others, 0.0), candidate: total}
    return {**others, candidate: total * share / (1 - share)}


def find_held(
    database: Database,
    release: ReleaseRow,
    weights: Mapping[str, float],
    sticky_s: float,
    now_s: float,
) -> HeldConversations:
    """The conversations of the last `sticky_s` that the new weights would move to the candidate."""
    new = list(weights.items())
    others = {k: v for k, v in release.record.before.items() if k != release.candidate}
    hashes: set[str] = set()
    for name, label in read_recent(database, release.deployment, now_s - sticky_s):
        if label != release.candidate and choose_version(name, new)[0] == release.candidate:
            hashes.add(read_hash(name))
            if len(hashes) >= MAX_HELD:
                break
    return HeldConversations(release.deployment, now_s, sticky_s, others, frozenset(hashes))


def read_recent(
    database: Database, deployment: str, since_s: float
) -> Iterable[tuple[str, str | None]]:
    """Users' conversations with a request since then and the version that answered it last, the
    newest first. Raises `DatabaseError`.
    """
    last = (
        select(func.max(requests.c.id).label("id"))
        .where(requests.c.at_s >= since_s, requests.c.deployment == deployment)
        .where(requests.c.shadow_of.is_(None), requests.c.conversation_id.is_not(None))
        .group_by(requests.c.conversation_id)
        .subquery()
    )
    query = (
        select(requests.c.conversation_id, requests.c.version)
        .join(last, last.c.id == requests.c.id)
        .order_by(requests.c.id.desc())
    )
    with database.begin() as connection:
        return [(row[0], row[1]) for row in connection.execute(query)]


def refresh_held(database: Database, held: HeldConversations, now_s: float) -> None:
    """Let the conversations go that had no request for a while. Raises `DatabaseError`.

    A request is in the log when it has ended, so nothing goes before the list is that old.
    """
    if now_s - held.updated_s < held.keep_s:
        return
    recent = {
        read_hash(name) for name, _ in read_recent(database, held.deployment, now_s - held.keep_s)
    }
    kept = held.hashes & recent
    with database.begin() as connection:
        note_change(connection)  # no gateway adds to it meanwhile
        if held not in read_held(connection):
            return
        if kept:
            fresh = msgspec.structs.replace(held, hashes=kept, updated_s=now_s)
            write_held(connection, fresh)
        else:
            drop_held(connection, held.deployment)


def close_steps(steps: tuple[Step, ...], now_s: float) -> tuple[Step, ...]:
    """The steps, with an end to the last one."""
    if not steps or steps[-1].until_s is not None:
        return steps
    return (*steps[:-1], msgspec.structs.replace(steps[-1], until_s=now_s))


def change_weights(
    database: Database,
    release: ReleaseRow,
    weights: Mapping[str, float],
    shadow: float,
    who: str,
    why: str,
    also: Any,
) -> None:
    """Write the weights of a release and its share of copies, with what `also` writes in the same
    transaction. Raises `ControlError` and `DatabaseError`.
    """

    def decide(state: Desired) -> list[DesiredChange]:
        there = _find_deployment(state, release.deployment)
        versions = tuple(
            replace(
                version,
                weight=weights.get(version.label, version.weight),
                shadow=shadow if version.label == release.candidate else version.shadow,
            )
            for version in there.versions
        )
        if not any(version.weight > 0 for version in versions):
            raise ControlError(
                f"all weights of {release.deployment!r} would be 0; set them: thrifty traffic "
                f"{release.deployment} LABEL=1 --force"
            )
        return [DesiredChange(release.deployment, replace(there, versions=versions))]

    change_desired(database, decide, kind=KIND, who=who, why=why, also=also)


def _read_verdict(figures: Mapping[str, Any] | None, record: Record) -> str | None:
    return (figures or {}).get("verdict") or record.verdict


def _require(database: Database, release_id: int, *states: str) -> ReleaseRow:
    release = read_release(database, release_id)
    if release.state not in states:
        raise ControlError(
            f"release {release_id} is {release.state.replace('_', ' ')}; this needs one that is "
            f"{' or '.join(states)}"
        )
    return release


def _find_deployment(state: Desired, name: str) -> DesiredDeployment:
    there = state.deployments.get(name)
    if there is None:
        known = ", ".join(state.deployments) or "none"
        raise ControlError(f"there is no deployment {name!r}; there are: {known}")
    return there


def _check_candidate(there: DesiredDeployment, candidate: str) -> None:
    version = there.find_version(candidate)
    labels = ", ".join(one.label for one in there.versions)
    if version is None:
        raise ControlError(f"{there.name!r} has no version {candidate!r}; its versions: {labels}")
    if version.weight > 0:
        raise ControlError(
            f"{candidate!r} has a weight of {version.weight:g} already; a release begins at 0: "
            f"thrifty traffic {there.name} {candidate}=0"
        )
    if not any(one.weight > 0 for one in there.versions):
        raise ControlError(f"no version of {there.name!r} has traffic to be compared with")


def _check_log(state: Desired, plan: ReleasePlan) -> None:
    """A release reads the request log, and a judge the texts in it."""
    gateway = state.service.gateway if state.service is not None else {}
    if not gateway.get("record_requests", True):
        raise ControlError(
            "a release is decided by the request log, which the spec turns off; set record.requests"
        )
    if plan.shadow.judge is not None and not gateway.get("record_prompts", False):
        raise ControlError(
            "a judge compares texts, which are not recorded; set record.prompts in the spec, or "
            "leave 'shadow.judge' out of the plan: the shadow is then skipped"
        )
    if plan.canary.judge is not None and not gateway.get("record_prompts", False):
        raise ControlError(
            "a judge scores texts, which are not recorded; set record.prompts in the spec, or leave "
            "'canary.judge' out of the plan"
        )
