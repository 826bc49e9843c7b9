"""Versions whose answers are worse than those of the deployment's others, and drift: for alerts.

A version is compared with the other versions of its deployment, by what is counted since each has
been checked. It is worse where that is shown, and by at least the drop that matters. The evidence is
valid at every look, so that one may look on and on: where nothing differs, a version is ever called
worse with a chance of at most `ALPHA`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from thrifty.db import Database
from thrifty.db.drift import DriftLook, read_looks
from thrifty.db.quality import read_answers
from thrifty.db.quality_sums import Counts, SumRow, read_sums
from thrifty.db.rollups import DAY_S
from thrifty.db.scores import Score, read_scores
from thrifty.quality.detect import FAULTS
from thrifty.quality.figures import ACCEPTED, ENGAGEMENT, add_counts, make_share
from thrifty.quality.judging import summarize_scores
from thrifty.quality.report import WORSE, VersionQuality, summarize
from thrifty.statistics import difference_evidence

ALPHA = 0.01
FIGURES = (*FAULTS, *ENGAGEMENT)
FIGURE_ALPHA = ALPHA / (len(FIGURES) + 1)
"""Each figure, and the judge, has an equal part."""
DRIFT_DAYS = 2
"""A change of the day before yesterday is news no more."""
Version = tuple[str, str]


class Worse(NamedTuple):
    """Something about one version that should be told."""

    deployment: str
    version: str
    subject: str
    """Which figure."""
    summary: str


def find_worse(database: Database, versions: Collection[Version], drop: float) -> list[Worse]:
    """What is worse of the versions that serve. Raises `DatabaseError`."""
    found = compare_canaries(summarize(read_answers(database)), versions)
    found += compare_shares(read_sums(database, DAY_S), versions, drop)
    return found + compare_scores(read_scores(database), versions, drop)


def find_drift(database: Database, versions: Collection[Version], now_s: float) -> list[Worse]:
    """What changed of late. Raises `DatabaseError`."""
    deployments = {name for name, _ in versions}
    return [
        Worse(one.deployment, one.version, one.name, describe_look(one))
        for one in read_looks(database, now_s - DRIFT_DAYS * DAY_S)
        if one.drifted
        and ((one.deployment, one.version) in versions or (not one.version and one.deployment in deployments))
    ]  # fmt: skip


def describe_look(look: DriftLook) -> str:
    """A change in words."""
    what = f"{look.name} of answers" if look.version else f"{look.name} of what is asked"
    return (
        f"{what} changed by {look.effect:+.2f} from the days before ({look.now} conversations "
        f"against {look.before}, p = {look.p_value:.1g})"
    )


def compare_shares(
    rows: Sequence[SumRow], versions: Collection[Version], drop: float
) -> list[Worse]:
    """Faults and what users did, of each version against the others of its deployment."""
    counts: dict[Version, Counts] = {}
    for key in {(row.deployment, row.version) for row in rows}:
        counts[key] = add_counts(row for row in rows if (row.deployment, row.version) == key)
    found = []
    for deployment, version in sorted(counts.keys() & set(versions)):
        others = [
            SumRow(0, *key, one, {})
            for key, one in counts.items()
            if key[0] == deployment and key[1] != version
        ]
        rest = add_counts(others)
        for name in FIGURES:
            told = compare_share(counts[deployment, version], rest, name, drop)
            if told is not None:
                found.append(Worse(deployment, version, name, told))
    return found


def compare_share(ours: Counts, others: Counts, name: str, drop: float) -> str | None:
    """What is worse about one share, in words; None where nothing is shown to be."""
    mine, theirs = make_share(ours, name), make_share(others, name)
    if mine.share is None or theirs.share is None:
        return None
    bad, other_bad = mine.found, theirs.found
    if name == ACCEPTED:
        bad, other_bad = mine.count - bad, theirs.count - other_bad
    if bad / mine.count - other_bad / theirs.count < drop:
        return None
    evidence = difference_evidence(bad, mine.count, other_bad, theirs.count)
    if evidence < math.log(1 / FIGURE_ALPHA):
        return None
    return (
        f"{name}: {mine.share:.1%} of {mine.count} conversations, and {theirs.share:.1%} of "
        f"{theirs.count} with the other versions"
    )


def compare_scores(
    scores: Iterable[Score], versions: Collection[Version], drop: float
) -> list[Worse]:
    """The judge's means, of each version against each other one of its deployment."""
    judged = summarize_scores(scores, FIGURE_ALPHA / 2)
    found = []
    for one in judged:
        if (one.deployment, one.version) not in versions or one.mean is None:
            continue
        for other in judged:
            same = (other.deployment, other.judge) == (one.deployment, one.judge)
            if not same or other.mean is None or one.corrected != other.corrected:
                continue
            if one.high < other.low and other.mean - one.mean >= drop:
                told = f"the judge gives {one.mean:.2f}; {other.version} has {other.mean:.2f}"
                found.append(Worse(one.deployment, one.version, "judged", told))
                break
    return found


def compare_canaries(
    canaries: Sequence[VersionQuality], versions: Collection[Version]
) -> list[Worse]:
    """Canary questions: versions that answer worse than at first."""
    newest = {(one.deployment, one.version): one for one in canaries}
    return [
        Worse(
            *key, "canary questions",
            f"{one.lost} canary questions became wrong and {one.gained} right; "
            f"{one.right} of {one.asked} are right now",
        )
        for key, one in newest.items()
        if key in versions and one.change == WORSE
    ]  # fmt: skip
