"""Has judges score the answers that chance chose, one at a time, and sums up what they said.

A judge errs. Its agreement with people is measured on the answers that both have judged, and its mean
is corrected by what people said of answers that chance chose (`statistics.predicted`): a judge that is
too kind makes no version look good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from thrifty.db import Database
from thrifty.db.desired_state import DesiredDeployment
from thrifty.db.scores import Score, drop_unscored, read_waiting, save_score
from thrifty.errors import DatabaseError
from thrifty.evaluate.judges import Judge, JudgeAway, open_judge
from thrifty.observe.texts import show_answer, show_prompt
from thrifty.quality.check import name_judge
from thrifty.spec.judges import RemoteJudge
from thrifty.statistics import Kappa, cohen_kappa, empirical_bernstein, predicted_mean
from thrifty.statistics.predicted import MIN_LABELS

log = logging.getLogger(__name__)

ALPHA = 0.05
GOOD_SCORE = 0.5
"""From this score on, the judge calls an answer good."""
LOOK_S = 1.0
RETRY_S = 60.0
"""After a judge that did not answer."""
BUSY_S = 2.0
"""After a database that did not."""
GIVE_UP_S = 86400.0
"""Answers that the judge did not come to in a day are given up."""


@dataclass(frozen=True)
class JudgedVersion:
    """What a judge, corrected by people, says of one version."""

    deployment: str
    version: str
    judge: str
    scored: int
    unusable: int
    """About so many more, the judge said nothing usable."""
    raw: float | None
    """The mean score."""
    labels: int
    """Answers that chance chose, and that people reviewed."""
    mean: float | None
    """The corrected mean; the raw one while there are fewer than `MIN_LABELS` labels."""
    low: float
    high: float
    corrected: bool
    kappa: float | None
    """The judge's agreement with people, of all versions of the deployment: Cohen's kappa."""
    kappa_low: float
    kappa_high: float
    agreement: float | None
    compared: int
    """Answers that both judged."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return asdict(self)


def summarize_scores(scores: Iterable[Score], alpha: float = ALPHA) -> list[JudgedVersion]:
    """Each version by its judge, with intervals that ever miss with a chance of at most `alpha`."""
    versions: dict[tuple[str, str, str], list[Score]] = {}
    judged: dict[tuple[str, str], list[Score]] = {}
    for one in scores:
        versions.setdefault((one.deployment, one.version, one.judge), []).append(one)
        judged.setdefault((one.deployment, one.judge), []).append(one)
    agreement = {key: _compare(some) for key, some in judged.items()}
    return [
        _summarize(key, some, agreement[key[0], key[2]], alpha)
        for key, some in sorted(versions.items())
    ]


def _compare(scores: Sequence[Score]) -> Kappa:
    both = [one for one in scores if one.label is not None and one.score >= 0]
    return cohen_kappa(
        [one.score >= GOOD_SCORE for one in both], [(one.label or 0) >= 0.5 for one in both]
    )


def _summarize(
    key: tuple[str, str, str], scores: Sequence[Score], kappa: Kappa, alpha: float
) -> JudgedVersion:
    usable = [one for one in scores if one.score >= 0]
    values = np.array([one.score for one in usable])
    labelled = [one for one in usable if one.review is not None]
    rest = np.array([one.score for one in usable if one.review is None])
    raw = float(values.mean()) if len(values) else None
    mean, low, high, corrected = raw, 0.0, 1.0, False
    if len(labelled) >= MIN_LABELS and len(rest) >= MIN_LABELS:
        found = predicted_mean(
            rest,
            np.array([one.score for one in labelled]),
            np.array([one.review for one in labelled], dtype=float),
            alpha,
        )
        mean, corrected = min(1.0, max(0.0, found.mean)), True
        low, high = max(0.0, found.low), min(1.0, found.high)
    elif len(values):
        lows, highs = empirical_bernstein(values, alpha)
        low, high = float(lows[-1]), float(highs[-1])
    known = not np.isnan(kappa.kappa)
    return JudgedVersion(
        *key, scored=len(usable), unusable=len(scores) - len(usable), raw=raw,
        labels=len(labelled), mean=mean, low=low, high=high, corrected=corrected,
        kappa=kappa.kappa if known else None, kappa_low=kappa.low, kappa_high=kappa.high,
        agreement=kappa.agreement if kappa.count else None, compared=kappa.count,
    )  # fmt: skip


class Judging:
    """Scores what waits, on the thread that calls `run`."""

    def __init__(
        self,
        database: Callable[[], Database],
        desired: Callable[[], Mapping[str, DesiredDeployment]],
    ) -> None:
        self._database = database
        self._desired = desired
        self._judges: dict[str, tuple[str, Judge]] = {}
        """The open judge of each deployment, with its name."""
        self._due_s: dict[str, float] = {}
        self._faults: dict[str, str] = {}

    def run(self, stopping: threading.Event, may: Callable[[], bool]) -> None:
        """Until it is told to stop; `may` says whether it is this process that judges."""
        while not stopping.wait(LOOK_S):
            if not may():
                continue
            try:
                for deployment in list(self._desired().values()):
                    while self.judge_next(deployment) and not stopping.is_set():
                        pass
            except DatabaseError:
                stopping.wait(BUSY_S)
            except Exception:
                # A fault of ours in one answer must not end all later ones.
                log.exception("an answer could not be judged")
                stopping.wait(RETRY_S)
        self.close()

    def judge_next(self, deployment: DesiredDeployment) -> bool:
        """Score one answer of a deployment, if one waits and it is time; whether it did. Raises
        `DatabaseError`.
        """
        name, checks = deployment.name, deployment.checks
        now_s = time.monotonic()
        if checks.judge is None or now_s < self._due_s.get(name, 0.0):
            return False
        database, judge_name = self._database(), name_judge(checks.judge)
        waiting = read_waiting(database, name, judge_name, 1)
        if not waiting:
            drop_unscored(database, time.time() - GIVE_UP_S)
            self._due_s[name] = now_s + LOOK_S
            return False
        self._due_s[name] = now_s + 3600.0 / checks.judge_per_hour
        try:
            judge = self._open(name, judge_name, checks.judge)
            one = waiting[0]
            score = judge.rate(show_prompt(one.prompt), show_answer(one.answer))
        except JudgeAway as error:
            if self._faults.get(name) != str(error):
                log.warning("%s: answers are not judged: %s", name, error)
            self._faults[name] = str(error)
            self._due_s[name] = now_s + RETRY_S
            self._close(name)
            return False
        self._faults.pop(name, None)
        save_score(database, one.id, score)
        return True

    def _open(self, name: str, judge_name: str, wanted: str | Mapping[str, Any]) -> Judge:
        known = self._judges.get(name)
        if known is not None and known[0] == judge_name:
            return known[1]
        self._close(name)
        named = wanted if isinstance(wanted, str) else RemoteJudge.model_validate(dict(wanted))
        judge = open_judge(named, self._database())
        self._judges[name] = judge_name, judge
        return judge

    def _close(self, name: str) -> None:
        known = self._judges.pop(name, None)
        if known is not None:
            known[1].close()

    def close(self) -> None:
        """Give the judges back."""
        for name in list(self._judges):
            self._close(name)
