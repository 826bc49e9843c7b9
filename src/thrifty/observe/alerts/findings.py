"""What is wrong now. Each function looks at one thing and gives what it found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from thrifty.db.alerts import Spending
from thrifty.observe.alerts.counts import Counts, Place
from thrifty.observe.alerts.settings import AlertSettings, Slo
from thrifty.observe.burn import BURNS, LATENCY_OBJECTIVE, PAGE, TICKET, Severity, write_window

RUNBOOKS = "docs/runbooks.md"
ERRORS, SLOW, CRASH_LOOP, BUDGET, FEEDBACK, QUALITY, DRIFT, DATABASE = (
    "errors", "slow", "crash_loop", "budget", "feedback", "quality", "drift", "database",
)  # fmt: skip
KINDS = {
    ERRORS: "errors-burn",
    SLOW: "slow-burn",
    CRASH_LOOP: "a-replica-is-in-a-crash-loop",
    BUDGET: "a-budget-is-nearly-spent",
    FEEDBACK: "people-like-answers-less",
    QUALITY: "answers-are-worse",
    DRIFT: "questions-or-answers-drift",
    DATABASE: "the-database-is-away",
}
"""Every kind of alert, with its section of the runbooks."""
LEAST_THUMBS = 50
"""Thumbs that both times must have for a comparison."""
THUMBS_Z = 3.5
"""How many standard errors a drop must be. One look goes wrong once in 4,000 times; looks at
windows that overlap are far from independent, so that a day of them goes wrong about once in
500."""


class Finding(NamedTuple):
    """Something that is wrong."""

    kind: str
    severity: Severity
    deployment: str
    version: str
    subject: str
    """What it is about beyond deployment and version, such as a replica or a key."""
    summary: str

    @property
    def key(self) -> str:
        """What tells it from others; the same one from look to look."""
        return "/".join((self.kind, self.deployment, self.version, self.subject))[:255]

    @property
    def runbook(self) -> str:
        """The page and section that says what to do."""
        return f"{RUNBOOKS}#{KINDS[self.kind]}"


def find_burns(counts: Counts, settings: AlertSettings, slos: Iterable[Slo]) -> list[Finding]:
    """Error budgets that are spent too fast: of each version the fastest burn, for errors and for
    the latencies of its `slo`.
    """
    with_slo = {(slo.deployment, slo.version) for slo in slos}
    found: dict[tuple[str, Place], Finding] = {}
    for burn in BURNS:
        long, short = counts.sum_up(burn.long_s), counts.sum_up(burn.short_s)
        if long is None or short is None:
            continue
        for place, totals in long.items():
            now = short.get(place)
            if now is None or totals.judged < settings.minimum:
                continue
            for kind, name, objective in (
                (ERRORS, "failed", settings.availability), (SLOW, "slow", LATENCY_OBJECTIVE),
            ):  # fmt: skip
                limit = burn.rate * (1 - objective)
                if (kind, place) in found or (kind == SLOW and place not in with_slo):
                    continue
                if totals.share(name) > limit and now.share(name) > limit:
                    what = "failed" if kind == ERRORS else "were slower than slo"
                    summary = (
                        f"{totals.share(name):.1%} of {totals.judged} requests of "
                        f"{write_window(burn.long_s)} {what}, and {now.share(name):.1%} of those "
                        f"of {write_window(burn.short_s)}; the budget is {1 - objective:.2%}"
                    )
                    found[kind, place] = Finding(kind, burn.severity, *place, "", summary)
    return list(found.values())


def find_crash_loops(replicas: Iterable[tuple[str, str, str, str]]) -> list[Finding]:
    """Replicas that end again and again: deployment, version, id and message of each."""
    return [
        Finding(
            CRASH_LOOP, PAGE, deployment, version, replica,
            f"{replica} ends again and again: {message.strip().splitlines()[-1]}"
            if message.strip() else f"{replica} ends again and again",
        )
        for deployment, version, replica, message in replicas
    ]  # fmt: skip


def find_budgets(spending: Iterable[Spending], share: float) -> list[Finding]:
    """Keys that have spent at least this share of a budget."""
    return [
        Finding(
            BUDGET, PAGE if one.spent >= one.budget else TICKET, "", "", f"{one.key}/{one.period}",
            f"the key {one.key} has spent {one.spent:.4g} of {one.budget:.4g} of this {one.period}"
            + (": its requests are refused" if one.spent >= one.budget else ""),
        )
        for one in spending
        if one.budget > 0 and one.spent >= share * one.budget
    ]  # fmt: skip


def find_feedback_drops(
    now: Mapping[Place, tuple[int, int]],
    before: Mapping[Place, tuple[int, int]],
    drop: float,
) -> list[Finding]:
    """Versions whose share of thumbs up is lower than that of their deployment before, by at least
    `drop` and by more than chance. Both are thumbs up and down by version.
    """
    known: dict[str, tuple[int, int]] = {}
    for (deployment, _), (up, down) in before.items():
        ups, downs = known.get(deployment, (0, 0))
        known[deployment] = ups + up, downs + down
    found = []
    for (deployment, version), (up, down) in now.items():
        ups, downs = known.get(deployment, (0, 0))
        votes, past = up + down, ups + downs
        if min(votes, past) < LEAST_THUMBS:
            continue
        share, usual = up / votes, ups / past
        pooled = (up + ups) / (votes + past)
        error = math.sqrt(pooled * (1 - pooled) * (1 / votes + 1 / past))
        if usual - share >= drop and usual - share > THUMBS_Z * error:
            found.append(
                Finding(
                    FEEDBACK, TICKET, deployment, version, "",
                    f"{share:.0%} of {votes} thumbs of a day are up; it was {usual:.0%} of {past} "
                    "in the week before",
                )
            )  # fmt: skip
    return found
