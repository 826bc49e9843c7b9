"""The judged canary: a judge scores answers of both versions while the candidate has a share.

One answer of a conversation is scored, its first. Of the conversations with the candidate all are; of
the others only so many that there are about three for each (`chances`), chosen by their names, so that
a judge with little time does not spend it on the version that is known. Which ones does not depend on what was
said, so that the difference stays valid with the shares among those chosen.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

from sqlalchemy import select

from thrifty.db.database import Database
from thrifty.db.ratings import read_ratings, save_rating
from thrifty.db.releases import ReleaseRow
from thrifty.db.tables import request_texts, requests
from thrifty.evaluate.judges import UNUSABLE
from thrifty.observe.texts import show_answer, show_prompt
from thrifty.release.chances import find_rate
from thrifty.release.conversations import Conversation
from thrifty.release.judge_thread import JudgeThread, is_held_by_operator
from thrifty.release.plan import ReleasePlan


def is_chosen(release_id: int, one: Conversation, share: float) -> bool:
    """Whether a conversation is scored."""
    if one.treated:
        return True
    digest = blake2b(f"{release_id} {one.name}".encode(), digest_size=8, person=b"rating").digest()
    return int.from_bytes(digest, "big") < find_rate(share) * 2**64


class Rating:
    """Scores the conversations of one release, in a thread. `look` is called at each turn."""

    def __init__(
        self, database: Callable[[], Database], release: ReleaseRow, plan: ReleasePlan
    ) -> None:
        self._database = database
        self._release = release
        self._plan = plan
        self._scores: dict[str, float] | None = None
        self._waiting: Sequence[Conversation] = ()
        self._seen = 0
        self._lock = threading.Lock()
        self._thread = JudgeThread("rating", database, plan.canary.judge, self._rate_next)

    @property
    def fault(self) -> str | None:
        """Why the judge is away."""
        return self._thread.fault

    @property
    def mute(self) -> str | None:
        """Why the judge is of no use."""
        return self._thread.mute

    @property
    def count(self) -> int:
        """How many conversations were looked at."""
        return len(self._scores or ())

    def look(self, release: ReleaseRow, measured: Sequence[Conversation]) -> None:
        """Take up the release as it is now, and what was measured. Raises `DatabaseError`."""
        if self._plan.canary.judge is None:
            return
        if self._scores is None:
            self._scores = read_ratings(self._database(), release.id)
        steps = release.record.steps
        open_ = bool(steps) and steps[-1].until_s is None
        if not open_ or is_held_by_operator(release):
            self._thread.want(False)
            return
        shares = [step.share for step in steps]
        if len(measured) < self._seen:  # they are read anew
            self._seen = 0
        new = [
            one for one in measured[self._seen :] if is_chosen(release.id, one, shares[one.step])
        ]
        self._seen = len(measured)
        with self._lock:
            self._waiting = [one for one in (*self._waiting, *new) if one.name not in self._scores]
        self._thread.want(True)

    def list_rated(self, measured: Sequence[Conversation]) -> list[Conversation]:
        """The measured conversations that have a score, in their order, with it as `rated`."""
        scores = dict(self._scores or {})
        return [
            replace(one, rated=scores[one.name])
            for one in measured
            if scores.get(one.name, UNUSABLE) >= 0
        ]

    def stop(self) -> None:
        """End the judge, without waiting for what it is at."""
        self._thread.stop()

    def _rate_next(self) -> bool:
        """Score one conversation; whether one waited."""
        with self._lock:
            one = next(iter(self._waiting), None)
        if one is None:
            return False
        assert self._scores is not None
        database = self._database()
        answer = read_answer(database, self._release, one)
        response, score = None, UNUSABLE
        if answer is not None:
            response, prompt, said = answer
            score = self._thread.ask(lambda judge: judge.rate(prompt, said), UNUSABLE)
            if not math.isfinite(score):
                score = UNUSABLE
        save_rating(database, self._release.id, one.name, response, score)
        self._scores[one.name] = score
        with self._lock:
            self._waiting = [other for other in self._waiting if other.name != one.name]
        return True


def read_answer(
    database: Database, release: ReleaseRow, one: Conversation
) -> tuple[int, str, str] | None:
    """The number, the prompt and the text of a conversation's first answer by its version; None
    where there is none with texts. Raises `DatabaseError`.
    """
    version = requests.c.version
    ours = version == release.candidate if one.treated else version != release.candidate
    query = (
        select(requests.c.id, request_texts.c.prompt, request_texts.c.answer)
        .join(request_texts, request_texts.c.id == requests.c.id)
        .where(requests.c.conversation_id == one.name, requests.c.deployment == release.deployment)
        .where(requests.c.at_s >= one.first_s, requests.c.status == 200, ours)
        .where(requests.c.error.is_(None), requests.c.shadow_of.is_(None))
        .where(request_texts.c.answer != "")
        .order_by(requests.c.at_s, requests.c.id)
        .limit(1)
    )
    with database.begin() as connection:
        row = connection.execute(query).first()
    return None if row is None else (row.id, show_prompt(row.prompt), show_answer(row.answer))
