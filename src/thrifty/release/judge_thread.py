"""A judge at work in a thread of its own, so that a turn of the controller never waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from thrifty.db.database import Database
from thrifty.db.releases import PAUSED, ReleaseRow
from thrifty.errors import DatabaseError
from thrifty.evaluate.judges import Judge, JudgeAway, is_mute, open_judge
from thrifty.spec.judges import RemoteJudge
from thrifty.untrusted_text import sanitize_line

log = logging.getLogger(__name__)

JUDGE = "judge"
"""Who has paused a release whose judge is away."""
IDLE_S, RETRY_S = 0.5, 5.0
MAX_REASON = 300
T = TypeVar("T")


def is_held_by_operator(release: ReleaseRow) -> bool:
    """Whether a release is paused for another reason than an absent judge."""
    return release.state == PAUSED and release.record.paused_by != JUDGE


class JudgeThread:
    """Calls `work` again and again while it is wanted."""

    def __init__(
        self, name: str, database: Callable[[], Database], named: str | RemoteJudge | None,
        work: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`named` is the judge. `work` says whether there was anything to do; it runs in the
        thread.
        """
        self.fault: str | None = None
        """Why the judge is away."""
        self._asked = self._silent = 0
        self._name = name
        self._database = database
        self._named = named
        self._work = work
        self._wanted = False
        self._stopping = threading.Event()
        self._judge: Judge | None = None
        self._thread: threading.Thread | None = None

    @property
    def stopping(self) -> bool:
        """Whether the thread is to end."""
        return self._stopping.is_set()

    @property
    def mute(self) -> str | None:
        """Why the judge is of no use: it answers, and says nothing usable too often."""
        asked, silent = self._asked, self._silent
        if not is_mute(silent, asked):
            return None
        return (
            f"the judge said nothing usable {silent} of {asked} times: no answer of the form that it "
            "was asked for, or another one once the answers changed places. Mend it, or give its "
            "deployment a better model, and resume; or promote or abort by hand"
        )

    def want(self, wanted: bool) -> None:
        """Whether there may be work from now on. A judge that was not wanted has a new chance."""
        self._wanted = wanted
        if not wanted:
            self.fault = None
            self._asked = self._silent = 0
        elif self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def ask(self, question: Callable[[Judge], T], nothing: T) -> T:
        """What the judge says, which is opened if need be; `nothing` is what it says where it says
        nothing usable. For `work`. Raises `JudgeAway`.
        """
        if self._judge is None:
            assert self._named is not None
            self._judge = open_judge(self._named, self._database())
        said = question(self._judge)
        self.fault = None
        self._asked += 1
        self._silent += said == nothing
        return said

    def stop(self) -> None:
        """End the thread and its judge, without waiting for what it is at."""
        self._stopping.set()
        self._close()

    def _run(self) -> None:
        while not self.stopping:
            wait_s = IDLE_S
            try:
                if self._wanted and self._work():
                    self.fault = None
                    wait_s = 0.0
            except DatabaseError:
                wait_s = RETRY_S
            except JudgeAway as error:
                self._fail(str(error))
                wait_s = RETRY_S
            except Exception as error:
                log.exception("a judgement failed")
                self._fail(f"the judge failed: {error}")
                wait_s = RETRY_S
            if wait_s:
                self._stopping.wait(wait_s)
        self._close()

    def _fail(self, reason: str) -> None:
        if self._wanted:
            self.fault = sanitize_line(reason, MAX_REASON)
        self._close()

    def _close(self) -> None:
        judge, self._judge = self._judge, None
        if judge is not None:
            judge.close()
