"""Watches one release: reads what came, weighs it, and does what follows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import msgspec
from sqlalchemy import select

from thrifty.db.database import Database
from thrifty.db.desired import Desired, read_desired, read_desired_change
from thrifty.db.desired_state import DesiredDeployment
from thrifty.db.releases import (
    ABORTED,
    ENDED,
    PAUSED,
    ROLLED_BACK,
    RUNNING,
    ReleaseChanged,
    ReleaseRow,
    Step,
    save_progress,
)
from thrifty.db.tables import replicas
from thrifty.release.bandit import LEAST_CHANGE, Control, count_arms, find_share, shift_share
from thrifty.release.conversations import Conversations, read_newest
from thrifty.release.decision import (
    ABORT,
    NEXT,
    PAUSE,
    PROMOTE,
    Decision,
    Situation,
    decide,
)
from thrifty.release.evidence import Evidence, check_ratio, weigh
from thrifty.release.judge_thread import JUDGE, MAX_REASON
from thrifty.release.judging import Judging
from thrifty.release.manage import close_steps, end_release, move_release, note_release
from thrifty.release.plan import BANDIT, ReleasePlan, parse_plan
from thrifty.release.rating import Rating
from thrifty.types import ReplicaState
from thrifty.untrusted_text import sanitize_line

log = logging.getLogger(__name__)

WHO = "release"
JUMP_S = 5.0
"""Wall clock and steady clock that part by more: somebody has set the clock."""
MOST_TURN_S = 30.0
"""A turn counts as no more time than this, however long the controller was held up."""
SAVE_S = 2.0


class Watch:
    """One release. `turn` blocks; the judge works in a thread of its own."""

    def __init__(
        self,
        database: Callable[[], Database],
        release: ReleaseRow,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds since 1970, `steady` those of a clock that nobody sets."""
        self._database = database
        self._clock, self._steady = clock, steady
        self._plan: ReleasePlan = parse_plan(release.record.plan)
        self._conversations: Conversations | None = None
        self._evidence = Evidence({})
        self._desired: Desired | None = None
        self._active_s = release.active_s
        # A clock that is behind what was last written was set back while no controller ran.
        self._wall_s, self._steady_s = max(clock(), release.updated_s), steady()
        self._saved_s = 0.0
        self._judging = Judging(database, release, self._plan)
        self._rating = Rating(database, release, self._plan)
        self._rated = 0
        self._control: Control | None = None
        if self._plan.bandit is not None:
            before = release.record.before
            self._control = Control(self._plan.bandit, before, release.candidate)
        self._shifted_s: float | None = None

    def close(self) -> None:
        """End the judges."""
        self._judging.stop()
        self._rating.stop()

    def turn(self, release: ReleaseRow) -> bool:
        """One look; whether it changed weights. Raises `DatabaseError` and `ControlError`."""
        try:
            return self._turn(release)
        except ReleaseChanged:
            return False  # an operator was first

    def _turn(self, release: ReleaseRow) -> bool:
        database = self._database()
        jumped_s = self._pass_time(release)
        if jumped_s:
            self._note_jump(database, release, jumped_s)
            return False
        there = self._read_deployment(database, release)
        if self._end_if_overridden(database, release, there):
            return True
        assert there is not None
        self._judging.look(release)
        self._rating.look(release, self._conversations.measured if self._conversations else ())
        fault = self._judging.fault or self._rating.fault
        if fault is not None and release.state == RUNNING:
            note_release(
                database, release, PAUSED, who=WHO, why=fault, kind="pause", paused_by=JUDGE
            )
            return False
        mute = self._judging.mute or self._rating.mute
        if mute is not None and release.state == RUNNING:
            note_release(database, release, PAUSED, who=WHO, why=mute, kind="pause", paused_by=WHO)
            return False
        if fault is None and release.state == PAUSED and release.record.paused_by == JUDGE:
            note_release(
                database, release, RUNNING, who=WHO, why="the judge is back", kind="resume"
            )
            return False
        self._observe(database, release, there)
        decision = decide(self._plan, self._describe(database, release, there), self._evidence)
        if decision is not None:
            self._act(database, release, decision)
            return decision.act != PAUSE
        if self._shift(database, release):
            return True
        if self._steady() - self._saved_s >= SAVE_S:
            self._saved_s = self._steady()
            save_progress(database, release, self._active_s, self._evidence.as_dict())
        return False

    def _pass_time(self, release: ReleaseRow) -> float:
        """Count the time since the last turn; by how much the clock was set, or 0."""
        wall_s, steady_s = self._clock(), self._steady()
        passed_s = steady_s - self._steady_s
        jumped_s = wall_s - self._wall_s - passed_s
        self._wall_s, self._steady_s = wall_s, steady_s
        if release.state == RUNNING:
            self._active_s += min(passed_s, MOST_TURN_S)
        return jumped_s if abs(jumped_s) > JUMP_S else 0.0

    def _note_jump(self, database: Database, release: ReleaseRow, jumped_s: float) -> None:
        """Begin the step anew: its conversations cannot be told from others by their times."""
        steps = close_steps(release.record.steps, self._clock())
        if steps and release.record.steps[-1].until_s is None:
            last = steps[-1]
            lost = msgspec.structs.replace(last, counts=False)
            newest = read_newest(database)
            fresh = Step(last.share, last.weights, self._clock(), after=newest)
            steps = (*steps[:-1], lost, fresh)
        record = msgspec.structs.replace(release.record, steps=steps)
        why = f"the clock was set by {jumped_s:+.0f} s; the figures of this step begin anew"
        note_release(
            database, release, release.state, who=WHO, why=why, kind="clock", record=record,
            paused_by=release.record.paused_by,
        )  # fmt: skip
        self._conversations = None

    def _read_deployment(self, database: Database, release: ReleaseRow) -> DesiredDeployment | None:
        newest = read_desired_change(database)
        if self._desired is None or self._desired.change_id != newest:
            self._desired = read_desired(database)
        return self._desired.deployments.get(release.deployment)

    def _end_if_overridden(
        self, database: Database, release: ReleaseRow, there: DesiredDeployment | None
    ) -> bool:
        """End the release where others have changed what it rests on."""
        record = release.record
        version = None if there is None else there.find_version(release.candidate)
        if there is None or version is None:
            why = "the candidate is not among the deployment's versions any more"
            note_release(database, release, ENDED, who=WHO, why=why, kind="override")
            return True
        weights = {one.label: one.weight for one in there.versions}
        if not _same_weights(weights, record.weights):
            why = "the weights were changed by somebody else; they stay as they are"
            note_release(database, release, ENDED, who=WHO, why=why, kind="override")
            return True
        if version.revision != record.revision:
            why = "the candidate was changed while it was released"
            end_release(database, release, ABORTED, who=WHO, why=why, kind="abort")
            return True
        return False

    def _observe(self, database: Database, release: ReleaseRow, there: DesiredDeployment) -> None:
        if self._conversations is None:
            prices = {
                one.label: (one.settings.price_input, one.settings.price_output)
                for one in there.versions
            }
            self._conversations = Conversations(release, self._plan, prices)
            changed = True
        else:
            changed = False
        found = self._conversations
        changed |= found.read(database, release, self._clock())
        outcomes, silent = list(self._judging.outcomes), self._judging.silent
        pairs, rated = len(outcomes) + silent, self._rating.count
        if not changed and pairs == self._evidence.pairs and rated == self._rated:
            return
        self._rated = rated
        shares = [step.share for step in release.record.steps]
        metrics = weigh(
            self._plan, found.measured, found.judged, shares, outcomes,
            self._rating.list_rated(found.measured),
            self._control.holds if self._control is not None else None,
        )  # fmt: skip
        broken, assigned, expected = check_ratio(found.assigned, shares)
        self._evidence = Evidence(
            metrics, broken, assigned, expected, found.requests, sum(found.left_out.values()),
            pairs, silent,
        )  # fmt: skip

    def _describe(
        self, database: Database, release: ReleaseRow, there: DesiredDeployment
    ) -> Situation:
        version = there.find_version(release.candidate)
        assert version is not None
        ready, fault = read_readiness(database, release, version.revision)
        step = len(release.record.steps) - 1
        measured = self._conversations.measured if self._conversations is not None else ()
        return Situation(
            release.record.stage, self._active_s, self._active_s - release.record.stage_active_s,
            sum(one.treated and (one.step == step or self._control is not None) for one in measured),
            ready or version.settings.wakes, fault, release.state == PAUSED,
        )  # fmt: skip

    def _shift(self, database: Database, release: ReleaseRow) -> bool:
        """Give a bandit's candidate its next share, if it is time; whether that changed weights."""
        bandit, found = self._plan.bandit, self._conversations
        if bandit is None or found is None or release.state != RUNNING:
            return False
        if self._plan.stages[release.record.stage] != BANDIT or not release.record.steps:
            return False
        if self._shifted_s is None:
            # A new controller goes by the time of the stage: it may change the share early, once.
            self._shifted_s = release.record.stage_active_s
        if self._active_s - self._shifted_s < bandit.every:
            return False
        self._shifted_s = self._active_s
        arms, now = count_arms(found.judged), release.record.steps[-1].share
        if arms.candidate[1] < self._plan.step.conversations:
            return False
        share = find_share(bandit, arms, now, seed=release.id)
        if abs(share - now) < LEAST_CHANGE:
            return False
        why = (
            f"from {now:.1%} to {share:.1%}: {arms.candidate[0]:g} of {arms.candidate[1]} "
            f"conversations accepted, of the others {arms.others[0]:g} of {arms.others[1]}"
        )
        return shift_share(
            database, release, share, self._plan.sticky, who=WHO, why=why,
            figures=self._evidence.as_dict(), active_s=self._active_s,
        )  # fmt: skip

    def _act(self, database: Database, release: ReleaseRow, decision: Decision) -> None:
        figures = {**self._evidence.as_dict(), "verdict": decision.verdict}
        log.info("release %d: %s (%s)", release.id, decision.act, decision.why)
        if decision.act in (NEXT, PROMOTE):
            last = len(self._plan.stages) - 1
            stage = release.record.stage + 1 if decision.act == NEXT else last
            move_release(
                database, release, stage, who=WHO, why=decision.why, figures=figures,
                active_s=self._active_s,
            )  # fmt: skip
        elif decision.act == PAUSE:
            note_release(
                database, release, PAUSED, who=WHO, why=decision.why, kind="pause",
                figures=figures, paused_by=WHO, verdict=decision.verdict,
            )  # fmt: skip
        else:
            aborted = decision.act == ABORT
            end_release(
                database, release, ABORTED if aborted else ROLLED_BACK, who=WHO,
                why=decision.why, kind="abort" if aborted else "rollback", figures=figures,
                verdict=decision.verdict, active_s=self._active_s,
            )  # fmt: skip


def read_readiness(
    database: Database, release: ReleaseRow, revision: str
) -> tuple[bool, str | None]:
    """Whether the candidate has a ready replica, and why its replicas do not start. Raises
    `DatabaseError`.
    """
    query = select(replicas.c.state, replicas.c.message).where(
        replicas.c.deployment == release.deployment, replicas.c.version == release.candidate,
        replicas.c.revision == revision,
    )  # fmt: skip
    with database.begin() as connection:
        rows = connection.execute(query).all()
    ready = any(row.state == ReplicaState.READY for row in rows)
    for row in rows:
        if row.state in (ReplicaState.FAILED, ReplicaState.CRASH_LOOP):
            lines = (row.message or "").strip().splitlines() or ["no reason is known"]
            return ready, sanitize_line(lines[-1], MAX_REASON)
    return ready, None


def _same_weights(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether two sets of weights give the same shares; versions without weight do not matter."""
    first = {label: weight for label, weight in one.items() if weight > 0}
    second = {label: weight for label, weight in other.items() if weight > 0}
    return first.keys() == second.keys() and all(
        abs(weight - second[label]) <= 1e-9 * max(weight, second[label])
        for label, weight in first.items()
    )
