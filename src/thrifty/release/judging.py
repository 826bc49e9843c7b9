"""The paired shadow: a judge compares the candidate's answers with those that users got."""

from __future__ import annotations

from collections.abc import Callable

from thrifty.db.database import Database
from thrifty.db.releases import ReleaseRow, read_outcomes, save_outcomes
from thrifty.evaluate.judges import SILENT, compare
from thrifty.release.judge_thread import JudgeThread, is_held_by_operator
from thrifty.release.pairs import LOST, Pair, read_pairs
from thrifty.release.plan import SHADOW, ReleasePlan


class Judging:
    """Has pairs compared while a release is in its shadow. `look` is called at each turn."""

    def __init__(
        self, database: Callable[[], Database], release: ReleaseRow, plan: ReleasePlan
    ) -> None:
        self.outcomes: list[int] = []
        """Of the pairs about which something was said: 1, 0 or -1."""
        self.silent = 0
        """Pairs about which the judge said nothing usable."""
        self._database = database
        self._release = release
        self._plan = plan
        self._shadows: set[int] = set()
        self._conversations: set[str | None] = set()
        self._restored = plan.shadow.judge is None
        self._thread = JudgeThread("judge", database, plan.shadow.judge, self._judge_some)

    @property
    def fault(self) -> str | None:
        """Why the judge is away."""
        return self._thread.fault

    @property
    def mute(self) -> str | None:
        """Why the judge is of no use."""
        return self._thread.mute

    def look(self, release: ReleaseRow) -> None:
        """Take up the release as it is now. Raises `DatabaseError`."""
        if not self._restored:
            for shadow, name, outcome in read_outcomes(self._database(), release.id):
                self._note(shadow, name, outcome)
            self._restored = True
        in_shadow = self._plan.stages[release.record.stage] == SHADOW
        self._thread.want(in_shadow and not is_held_by_operator(release))

    def stop(self) -> None:
        """End the judge, without waiting for what it is at."""
        self._thread.stop()

    def _judge_some(self) -> bool:
        """Compare the pairs that there are; whether there were any."""
        if len(self.outcomes) + self.silent >= self._plan.shadow.pairs:
            return False
        database = self._database()
        pairs = read_pairs(database, self._release, self._shadows, self._conversations)
        for pair in pairs:
            if self._thread.stopping:
                return False
            outcome = LOST if pair.failed else self._compare(pair)
            row = (pair.shadow, pair.response, pair.conversation_id, outcome)
            save_outcomes(database, self._release.id, [row])
            self._note(pair.shadow, pair.conversation_id, outcome)
        return bool(pairs)

    def _compare(self, pair: Pair) -> int:
        if pair.candidate == pair.other:
            return 0
        return self._thread.ask(
            lambda judge: compare(judge, pair.prompt, pair.candidate, pair.other), SILENT
        )

    def _note(self, shadow: int, name: str | None, outcome: int) -> None:
        self._shadows.add(shadow)
        self._conversations.add(name)
        if outcome == SILENT:
            self.silent += 1
        else:
            self.outcomes.append(outcome)
