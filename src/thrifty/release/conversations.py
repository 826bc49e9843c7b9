"""What a release observes: users' conversations, each once, with what became of it.

The conversation is the unit, because its requests depend on each other and all go to one version. It
counts in the step of the release in which it began. Left out are conversations that began before the
release, that another version answered than the weights chose (rerouted, pinned, or begun before
gateways knew the new weights), and requests that are no user's: copies, batches, measurements.

All of it is read from the request log and the feedback, so that a controller that was killed comes to
the same figures again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, or_, select

from thrifty.db.database import Database
from thrifty.db.releases import ReleaseRow, Step
from thrifty.db.tables import feedback, requests
from thrifty.openai.conversations import choose_version
from thrifty.release.plan import ReleasePlan

OPERATION_S = 30.0
"""So long after a conversation's first request its requests count for errors, times and cost."""
WRITE_S = 2.0
"""Rows are in the log this long after their request, at the latest, if the log keeps up."""
GRACE_S = 1.0
"""After a change of the weights, gateways may go by the old ones for so long."""
SHORT_LOOK_S, LONG_LOOK_S, LONG_EVERY_S = 15.0, 600.0, 20.0
"""Rows are written when a request ends. Each look reads those of the last seconds; now and then one
finds the requests that took longer."""
LEAST_TTFT_MS, LEAST_TPOT_MS = 5.0, 1.0
"""Times below these count as these: nobody notices them, and their ratios are noise."""
PIECE = 400
CLIENT_CLOSED = 499
EXPLICIT = ("thumbs", "rating", "correction")
IMPLIED = {
    "event:copied": 1.0,
    "event:regenerated": 0.0,
    "event:edited": 0.0,
    "event:abandoned": 0.0,
}
_COLUMNS = [
    requests.c[name]
    for name in (
        "id", "at_s", "conversation_id", "rerouted", "version", "status", "error", "cache",
        "cached_tokens", "prompt_tokens", "completion_tokens", "ttft_ms", "tpot_ms",
    )
]  # fmt: skip


@dataclass(slots=True)
class Conversation:
    """One unit. Sums and counts of its requests."""

    first_s: float
    step: int
    """The index of the release's step in which it began."""
    treated: bool
    """Whether the weights chose the candidate."""
    requests: int = 0
    failures: int = 0
    log_ttft: list[float] = field(default_factory=list)
    log_tpot: list[float] = field(default_factory=list)
    cost: float = 0.0
    costed: int = 0
    liked: float = math.nan
    """From 0 to 1; NaN: nobody said anything."""
    name: str = ""
    """Its id in the request log."""
    rated: float = math.nan
    """What a judge said of its first answer, from 0 to 1."""


class Conversations:
    """Reads the conversations of one release. `read` blocks; used on one thread at a time."""

    def __init__(
        self, release: ReleaseRow, plan: ReleasePlan, prices: Mapping[str, tuple[float, float]]
    ) -> None:
        """`prices` are what a million tokens of prompts and answers cost, by version."""
        self._release = release
        self._plan = plan
        self._prices = prices
        self._window_s = min(plan.settle, OPERATION_S)
        steps = release.record.steps
        # A clock that was set back has steps begin before the release.
        self._start_s = min([release.created_s, *(step.since_s for step in steps)])
        self._known: set[str] | None = None
        self._open: dict[str, Conversation] = {}
        self._answered: dict[str, Conversation] = {}
        """Whose requests are complete, and whose feedback is not."""
        self._rows: dict[int, float] = {}
        self._read_to_s = self._start_s
        self._long_look_s = -math.inf
        self.measured: list[Conversation] = []
        """With their requests complete, in order."""
        self.judged: list[Conversation] = []
        """With feedback, in the order in which it became complete."""
        self.left_out: Counter[str] = Counter()
        self.assigned: dict[int, list[int]] = {}
        """By step: conversations that went to the candidate, and all."""
        self.requests = 0

    def read(self, database: Database, release: ReleaseRow, now_s: float) -> bool:
        """Read what has come since; whether any conversation was completed. Raises
        `DatabaseError`.
        """
        self._release = release
        if self._known is None:
            self._known = self._read_known(database)
        for row in self._read_rows(database, now_s):
            self._take(row)
        return self._complete(database, now_s)

    def _read_known(self, database: Database) -> set[str]:
        """Conversations that were going on when the release began."""
        start_s = self._start_s
        query = select(requests.c.conversation_id).distinct()
        query = query.where(
            requests.c.at_s >= start_s - self._plan.sticky, requests.c.at_s < start_s,
            requests.c.deployment == self._release.deployment,
        )  # fmt: skip
        with database.begin() as connection:
            return {row[0] for row in connection.execute(query) if row[0] is not None}

    def _read_rows(self, database: Database, now_s: float) -> list[Any]:
        look_s = SHORT_LOOK_S
        if now_s - self._long_look_s >= LONG_EVERY_S:
            look_s, self._long_look_s = LONG_LOOK_S, now_s
        since_s = max(self._start_s, min(self._read_to_s, now_s) - look_s)
        query = (
            select(*_COLUMNS)
            .where(requests.c.at_s >= since_s, requests.c.deployment == self._release.deployment)
            .where(or_(requests.c.origin.is_(None), requests.c.origin == "client"))
            .where(requests.c.shadow_of.is_(None), requests.c.conversation_id.is_not(None))
            .order_by(requests.c.at_s, requests.c.id)
        )
        with database.begin() as connection:
            rows = connection.execute(query).all()
        fresh = [row for row in rows if row.id not in self._rows]
        for row in fresh:
            self._rows[row.id] = row.at_s
        if look_s == LONG_LOOK_S:
            oldest_s = since_s - LONG_LOOK_S
            self._rows = {key: at_s for key, at_s in self._rows.items() if at_s >= oldest_s}
        self._read_to_s = now_s
        return fresh

    def _take(self, row: Any) -> None:
        assert self._known is not None
        name = row.conversation_id
        conversation = self._open.get(name)
        if conversation is None:
            if name in self._known:
                return
            self._known.add(name)
            conversation = self._begin(row)
            if conversation is None:
                return
            self._open[name] = conversation
        if row.rerouted or self._is_treated(row) != conversation.treated:
            self.left_out["requests rerouted or pinned"] += 1
            return
        self.requests += 1
        conversation.requests += 1
        add_request(conversation, row, self._prices.get(row.version, (0.0, 0.0)))

    def _begin(self, row: Any) -> Conversation | None:
        """The unit that begins with a row; None where it is left out."""
        steps = self._release.record.steps
        place = find_step(steps, row.at_s)
        if place is None:
            self.left_out["between two steps"] += 1
            return None
        if row.id <= steps[place].after:
            self.left_out["before the clock was set"] += 1
            return None
        if row.rerouted:
            self.left_out["rerouted"] += 1
            return None
        chosen = choose_version(row.conversation_id, list(steps[place].weights.items()))[0]
        treated = chosen == self._release.candidate
        if treated != self._is_treated(row):
            self.left_out["pinned or chosen by other weights"] += 1
            return None
        counts = self.assigned.setdefault(place, [0, 0])
        counts[0] += treated
        counts[1] += 1
        return Conversation(row.at_s, place, treated, name=row.conversation_id)

    def _is_treated(self, row: Any) -> bool:
        return bool(row.version == self._release.candidate)

    def _complete(self, database: Database, now_s: float) -> bool:
        """Move on the conversations whose time is over."""
        done = [
            name
            for name, one in self._open.items()
            if now_s >= one.first_s + self._window_s + WRITE_S
        ]
        for name in done:
            conversation = self._open.pop(name)
            self.measured.append(conversation)
            self._answered[name] = conversation
        settled = [
            name
            for name, one in self._answered.items()
            if now_s >= one.first_s + self._plan.settle + WRITE_S
        ]
        if settled:
            chosen = {name: self._answered.pop(name) for name in settled}
            for name, liked in read_liked(database, chosen, self._plan.settle).items():
                chosen[name].liked = liked
                self.judged.append(chosen[name])
        return bool(done or settled)


def read_newest(database: Database) -> int:
    """The largest number of a logged request. Raises `DatabaseError`."""
    with database.begin() as connection:
        return int(connection.execute(select(func.max(requests.c.id))).scalar() or 0)


def find_step(steps: Sequence[Step], at_s: float) -> int | None:
    """The step in which a request was sent; None between two of them, or right after a change."""
    for place, step in enumerate(steps):
        until_s = math.inf if step.until_s is None else step.until_s
        if step.counts and 0 < step.share < 1 and step.since_s + GRACE_S <= at_s < until_s:
            return place
    return None


def add_request(conversation: Conversation, row: Any, prices: tuple[float, float]) -> None:
    """Add one request to its conversation.

    Times and cost are of answers that were generated, with nothing remembered from before: a new
    version's cold caches must not count as slowness, nor an old one's warm caches as speed.
    """
    if row.status >= 500 or (row.status == 200 and row.error):
        conversation.failures += 1
    if row.status != 200 or row.error or row.cache == "hit":
        return
    if row.ttft_ms and not row.cached_tokens:
        conversation.log_ttft.append(math.log(max(row.ttft_ms, LEAST_TTFT_MS)))
    if row.tpot_ms:
        conversation.log_tpot.append(math.log(max(row.tpot_ms, LEAST_TPOT_MS)))
    if row.prompt_tokens is not None and row.completion_tokens is not None:
        conversation.cost += row.prompt_tokens * prices[0] + row.completion_tokens * prices[1]
        conversation.costed += 1


def read_liked(
    database: Database, conversations: Mapping[str, Conversation], settle_s: float
) -> dict[str, float]:
    """What people thought of each conversation, from 0 to 1, in the order given; those of which
    nobody said anything are left out. What was said (thumbs, ratings, corrections) outweighs what was
    done (copied, regenerated, edited, abandoned). Raises `DatabaseError`.
    """
    said: dict[str, list[float]] = {}
    done: dict[str, list[float]] = {}
    place = func.coalesce(feedback.c.conversation_id, requests.c.conversation_id)
    joined = feedback.outerjoin(requests, requests.c.id == feedback.c.response)
    columns = (feedback.c.kind, feedback.c.value, feedback.c.at_s, place.label("name"))
    with database.begin() as connection:
        for names in _in_pieces(conversations):
            for where in (
                feedback.c.conversation_id.in_(names), requests.c.conversation_id.in_(names),
            ):  # fmt: skip
                for row in connection.execute(select(*columns).select_from(joined).where(where)):
                    conversation = conversations.get(row.name)
                    if conversation is None or row.at_s > conversation.first_s + settle_s:
                        continue
                    value = rate(row.kind, row.value)
                    if value is not None:
                        kept = said if row.kind in EXPLICIT else done
                        kept.setdefault(row.name, []).append(value)
    found = {}
    for name in conversations:
        values = said.get(name) or done.get(name)
        if values:
            found[name] = sum(values) / len(values)
    return found


def rate(kind: str, value: float | None) -> float | None:
    """What one piece of feedback says of an answer, from 0 (bad) to 1; None if it says nothing."""
    match kind:
        case "thumbs" if value is not None:
            return float(value > 0)
        case "rating" if value is not None:
            return 1.0 if value >= 4 else 0.0 if value <= 2 else 0.5
        case "correction":
            return 0.0
    return IMPLIED.get(kind)


def _in_pieces(names: Iterable[str]) -> Iterable[list[str]]:
    ordered = list(names)
    for start in range(0, len(ordered), PIECE):
        yield ordered[start : start + PIECE]
