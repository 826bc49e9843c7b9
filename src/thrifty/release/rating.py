"""The judged canary: a judge scores answers of both versions while the candidate has a share.

One answer of a conversation is scored, its first. Of the conversations with the candidate all are; of
the others only so many that there are about three for each (`chances`), chosen by their names, so that
a judge with little time does not spend it on the version that is known. Which ones does not depend on what was
said, so that the difference stays valid with the shares among those chosen.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

from sqlalchemy import select

from thrifty.db.database import Database
from thrifty.db.ratings import read_ratings, save_rating
from thrifty.db.releases import PAUSED, ReleaseRow
from thrifty.db.tables import request_texts, requests
from thrifty.errors import DatabaseError
from thrifty.evaluate.judges import UNUSABLE, Judge, JudgeAway, open_judge
from thrifty.observe.texts import show_answer, show_prompt
from thrifty.release.chances import find_rate
from thrifty.release.conversations import Conversation
from thrifty.release.plan import ReleasePlan
from thrifty.untrusted_text import sanitize_line

log = logging.getLogger(__name__)

IDLE_S, RETRY_S = 0.5, 5.0
MAX_REASON = 300
JUDGE = "judge"
"""Who has paused a release whose judge is away."""


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
        self.fault: str | None = None
        """Why the judge is away."""
        self._database = database
        self._release = release
        self._plan = plan
        self._scores: dict[str, float] | None = None
        self._waiting: Sequence[Conversation] = ()
        self._seen = 0
        self._lock = threading.Lock()
        self._wanted = False
        self._stopping = threading.Event()
        self._judge: Judge | None = None
        self._thread: threading.Thread | None = None

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
        by_operator = release.state == PAUSED and release.record.paused_by != JUDGE
        steps = release.record.steps
        open_ = bool(steps) and steps[-1].until_s is None
        self._wanted = open_ and not by_operator
        if not self._wanted:
            self.fault = None
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
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rating", daemon=True)
            self._thread.start()

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
        self._stopping.set()
        self._close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait_s = IDLE_S
            try:
                if self._wanted and self._rate_next():
                    wait_s = 0.0
            except DatabaseError:
                wait_s = RETRY_S
            except JudgeAway as error:
                self._fail(str(error))
                wait_s = RETRY_S
            except Exception as error:
                log.exception("an answer could not be scored")
                self._fail(f"the judge failed: {error}")
                wait_s = RETRY_S
            if wait_s:
                self._stopping.wait(wait_s)
        self._close()

    def _rate_next(self) -> bool:
        """Score one conversation; whether one waited. With none, an absent judge is asked for."""
        with self._lock:
            one = next(iter(self._waiting), None)
        if one is None:
            return False
        named = self._plan.canary.judge
        assert named is not None
        assert self._scores is not None
        database = self._database()
        answer = read_answer(database, self._release, one)
        response, score = None, UNUSABLE
        if answer is not None:
            if self._judge is None:
                self._judge = open_judge(named, database)
            response, prompt, said = answer
            score = self._judge.rate(prompt, said)
            if not math.isfinite(score):
                score = UNUSABLE
        save_rating(database, self._release.id, one.name, response, score)
        self._scores[one.name] = score
        with self._lock:
            self._waiting = [other for other in self._waiting if other.name != one.name]
        self.fault = None
        return True

    def _fail(self, reason: str) -> None:
        if self._wanted:
            self.fault = sanitize_line(reason, MAX_REASON)
        self._close()

    def _close(self) -> None:
        judge, self._judge = self._judge, None
        if judge is not None:
            judge.close()


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
