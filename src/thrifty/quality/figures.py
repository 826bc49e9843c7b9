"""What is known of the quality of each version's answers: shares with intervals, sessions, a course by
day. Read from sums, so that it takes as long for ten million answers as for ten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.db import Database
from thrifty.db.drift import read_looks
from thrifty.db.quality import read_answers
from thrifty.db.quality_sums import Counts, SumRow, read_sums
from thrifty.db.rollups import DAY_S
from thrifty.db.scores import read_scores
from thrifty.quality.detect import FAULTS
from thrifty.quality.follow import CORRECTED, REGENERATED, REPHRASED
from thrifty.quality.judging import summarize_scores
from thrifty.quality.report import summarize
from thrifty.statistics import mixture_radius, share_interval, tune_rho

ALPHA = 0.05
"""Of each interval, for all looks together."""
ACCEPTED, ABANDONED = "accepted", "abandoned"
ENGAGEMENT = {
    ACCEPTED: "of the answers that something followed, those after which the talk simply went on",
    REGENERATED: "the same was asked again",
    REPHRASED: "it was asked again in other words",
    CORRECTED: "the user said that it is wrong, or changed it",
    ABANDONED: "the client left before the answer was whole",
}
"""What users did, with what each is a share of or means."""
TUNED_SESSIONS = 500.0
LEAST_SESSIONS = 30
"""Of fewer, the limit theorem says too little."""
SHOWN_DAYS = 30


@dataclass(frozen=True)
class Share:
    """How often something was found in the answers of a version."""

    name: str
    count: int
    """Answers that count: one of a conversation and day to which it applies."""
    found: int
    share: float | None
    low: float
    high: float
    """A confidence sequence: it holds the share however often one looks."""
    all_count: int
    """All checked answers to which it applies."""
    all_found: int


@dataclass(frozen=True)
class Sessions:
    """How users talk with a version."""

    count: int
    turns: float | None
    """Requests of a session, in the mean, with a confidence sequence."""
    low: float | None
    high: float | None
    minutes: float | None
    """From a session's first request to its last answer, in the mean."""
    returned: int
    """Sessions of conversations that had one before."""


@dataclass(frozen=True)
class VersionFigures:
    """What was found in one version's answers since it has been checked."""

    deployment: str
    version: str
    answers: int
    checked: int
    since_s: int
    faults: list[Share]
    engagement: list[Share]
    sessions: Sessions

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return asdict(self)

    def find(self, name: str) -> Share | None:
        """One of the shares."""
        return next((one for one in (*self.faults, *self.engagement) if one.name == name), None)


def add_counts(rows: Iterable[SumRow]) -> Counts:
    """The numbers of several sums together."""
    total: Counts = {}
    for row in rows:
        for name, numbers in row.counts.items():
            known = total.setdefault(name, [0.0] * len(numbers))
            for place, number in enumerate(numbers):
                known[place] += number
    return total


def make_figures(rows: Sequence[SumRow], alpha: float = ALPHA) -> list[VersionFigures]:
    """The figures of each version in some sums."""
    parts: dict[tuple[str, str], list[SumRow]] = {}
    for row in rows:
        parts.setdefault((row.deployment, row.version), []).append(row)
    found = []
    for (deployment, version), own in sorted(parts.items()):
        counts = add_counts(own)
        found.append(
            VersionFigures(
                deployment, version, int(_first(counts, "answers")), int(_first(counts, "checked")),
                min(row.at_s for row in own), [make_share(counts, name, alpha) for name in FAULTS],
                [make_share(counts, name, alpha) for name in ENGAGEMENT], _make_sessions(counts),
            )
        )  # fmt: skip
    return found


def make_share(counts: Mapping[str, Sequence[float]], name: str, alpha: float = ALPHA) -> Share:
    """One share from the numbers of a sum."""
    count, found, all_count, all_found = (int(one) for one in counts.get(name, (0, 0, 0, 0)))
    low, high = share_interval(found, count, alpha)
    share = found / count if count else None
    return Share(name, count, found, share, low, high, all_count, all_found)


def _first(counts: Mapping[str, Sequence[float]], name: str) -> float:
    return counts.get(name, (0.0,))[0]


def _make_sessions(counts: Mapping[str, Sequence[float]]) -> Sessions:
    count, turns, squares, seconds, returned = counts.get("session", (0.0,) * 5)
    if not count:
        return Sessions(0, None, None, None, None, int(returned))
    mean = turns / count
    low = high = None
    if count >= LEAST_SESSIONS:
        variance = max(0.0, squares / count - mean**2)
        rho = tune_rho(TUNED_SESSIONS, ALPHA)
        radius = float(mixture_radius(count, variance, ALPHA, rho))
        low, high = max(1.0, mean - radius), mean + radius
    return Sessions(int(count), mean, low, high, seconds / count / 60, int(returned))


def make_course(rows: Sequence[SumRow], now_s: float, days: int = SHOWN_DAYS) -> dict[str, Any]:
    """The share of each fault and of what users did, by version and day."""
    today = int(now_s // DAY_S) * DAY_S
    times = [today - DAY_S * ago for ago in reversed(range(days))]
    by_day = {(row.deployment, row.version, row.at_s): row.counts for row in rows}
    versions = sorted({(row.deployment, row.version) for row in rows if row.at_s >= times[0]})
    series = []
    for deployment, version in versions:
        values: dict[str, list[float | None]] = {}
        for name in (*FAULTS, *ENGAGEMENT):
            some = [by_day.get((deployment, version, at_s), {}).get(name) for at_s in times]
            values[name] = [one[1] / one[0] if one and one[0] else None for one in some]
        labels = {"deployment": deployment, "version": version}
        series.append({"labels": labels, "values": values})
    return {"times": times, "series": series}


def describe_quality(
    database: Database, now_s: float, deployment: str | None = None
) -> dict[str, Any]:
    """All that is known of the quality of answers, as JSON shows it. Raises `DatabaseError`."""
    rows = read_sums(database, DAY_S, deployment=deployment)
    looks = read_looks(database, now_s - SHOWN_DAYS * DAY_S, deployment)
    return {
        "canaries": [one.as_dict() for one in summarize(read_answers(database, deployment))],
        "versions": [one.as_dict() for one in make_figures(rows)],
        "judged": [one.as_dict() for one in summarize_scores(read_scores(database, deployment))],
        "drift": [
            {
                "at_s": one.at_s, "deployment": one.deployment, "version": one.version,
                "name": one.name, "before": one.before, "now": one.now, "effect": one.effect,
                "p_value": one.p_value, "drifted": one.drifted,
            }
            for one in reversed(looks)
        ],
        "course": make_course(rows, now_s),
    }  # fmt: skip
