"""What follows from the evidence: a pure function of the plan, the stage and the figures."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.release.evidence import (
    ABSOLUTE,
    BETTER,
    INCONCLUSIVE,
    NOT_WORSE,
    NOTHING_WORSE,
    SIGNS,
    WORSE,
    Evidence,
    MetricEvidence,
)
from thrifty.release.plan import (
    COST,
    ERRORS,
    GUARDS,
    JUDGED,
    RATED,
    SHADOW,
    START,
    TPOT,
    TTFT,
    ReleasePlan,
)

WAITED_FOR = (TTFT, TPOT, COST, RATED)
"""Guards whose figures come by themselves, so that a promotion by guards waits until they rule out a
loss. Failures are counted without an interval, and what users say may never come."""
NEXT, PROMOTE, ROLL_BACK, PAUSE, ABORT = "next", "promote", "roll_back", "pause", "abort"


@dataclass(frozen=True)
class Situation:
    """Where a release stands."""

    stage: int
    active_s: float
    """How long it has run, pauses left out."""
    stage_s: float
    """How long in this stage."""
    stage_candidates: int
    """Conversations with the candidate that were measured in this stage."""
    ready: bool
    """Whether the candidate has a replica that answers."""
    fault: str | None = None
    """Why its replicas do not start."""
    paused: bool = False


@dataclass(frozen=True)
class Decision:
    """What is to be done, and why."""

    act: str
    why: str
    verdict: str | None = None


def decide(plan: ReleasePlan, situation: Situation, evidence: Evidence) -> Decision | None:
    """The next act; None: go on as it is. A release that is paused goes no further, and is rolled
    back all the same.
    """
    stage = plan.stages[situation.stage]
    if situation.fault is not None and not situation.ready:
        return Decision(ABORT, f"the candidate does not start: {situation.fault}")
    for metric in evidence.metrics.values():
        if metric.verdict == WORSE:
            act = plan.then.worse
            if act == PAUSE and situation.paused:
                return None
            return Decision(act, _describe(plan, metric), WORSE)
    if situation.paused:
        return None
    if evidence.ratio_broken:
        hits, count = evidence.assigned
        return Decision(
            PAUSE,
            f"{hits} of {count} conversations went to the candidate, and about "
            f"{evidence.expected:.0f} should have: the comparison cannot be trusted. Look for requests "
            "that fail before they are logged, or a client that keeps to one version",
        )
    if situation.active_s > plan.budget.time or evidence.requests > plan.budget.requests:
        used = "requests" if evidence.requests > plan.budget.requests else "time"
        return Decision(plan.then.inconclusive, f"the budget of {used} is used up", INCONCLUSIVE)
    if stage == START:
        return Decision(NEXT, "the candidate is ready") if situation.ready else None
    if stage == SHADOW:
        return _decide_shadow(plan, evidence)
    if situation.stage_s < plan.step.time:
        return None
    if situation.stage_candidates < plan.step.conversations:
        return None
    if situation.stage < len(plan.stages) - 2:
        why = f"{situation.stage_candidates} conversations at {stage}, nothing is worse"
        return Decision(NEXT, why)
    return _promote(plan, evidence)


def _decide_shadow(plan: ReleasePlan, evidence: Evidence) -> Decision | None:
    judged = evidence.metrics[JUDGED]
    primary = plan.primary_metric == JUDGED
    if judged.verdict in (BETTER, NOT_WORSE):
        if len(plan.steps) == 1:
            return _promote(plan, evidence)
        return Decision(NEXT, describe_metric(judged))
    if evidence.pairs < plan.shadow.pairs:
        return None
    why = f"{evidence.pairs} pairs were judged without a verdict"
    if evidence.silent_pairs:
        why += f"; the judge said nothing usable of {evidence.silent_pairs}"
    if primary or plan.shadow.inconclusive == "stop":
        return Decision(plan.then.inconclusive, why, INCONCLUSIVE)
    return Decision(NEXT, why)


def _promote(plan: ReleasePlan, evidence: Evidence) -> Decision | None:
    """Promotion, where the primary metric allows it, or the guards do: each that was observed must
    rule out a loss beyond what is tolerated and the margin.
    """
    if plan.primary == GUARDS:
        if any(_is_awaited(plan, metric) for metric in evidence.metrics.values()):
            return None
        hits, count = evidence.assigned
        why = f"no guard is worse, {hits} of {count} conversations with the candidate"
        return Decision(plan.then.not_worse, why, NOTHING_WORSE)
    primary = evidence.metrics[plan.primary_metric]
    if primary.verdict not in (BETTER, NOT_WORSE):
        return None
    act = plan.then.better if primary.verdict == BETTER else plan.then.not_worse
    return Decision(act, _describe(plan, primary), primary.verdict)


def _is_awaited(plan: ReleasePlan, metric: MetricEvidence) -> bool:
    """Whether a guard was observed, and does not rule out yet that the candidate is worse by what is
    tolerated and the margin.
    """
    if metric.metric not in WAITED_FOR or not metric.candidate_count + metric.others_count:
        return False
    sign = SIGNS[metric.metric]
    worst = metric.low if sign > 0 else metric.high
    most = plan.metrics[metric.metric] + plan.margin
    return worst is None or -sign * worst > most


def _describe(plan: ReleasePlan, metric: MetricEvidence) -> str:
    """The metric in words; of a bandit, that its control slice alone was looked at."""
    slice_ = plan.bandit is not None and metric.metric in ABSOLUTE
    return describe_metric(metric) + (" of the control slice" if slice_ else "")


def describe_metric(metric: MetricEvidence) -> str:
    """The metric's verdict with the figures that it rests on, in words."""
    counts = f"{metric.candidate_count} and {metric.others_count} conversations"
    if metric.metric == JUDGED:
        counts = f"{metric.candidate_count} pairs"
    if metric.metric == ERRORS:
        return (
            f"{metric.metric} {metric.verdict}: {metric.candidate or 0:.2%} against "
            f"{metric.others or 0:.2%} ({counts})"
        )
    low = "" if metric.low is None else f"{metric.low:+.1%}"
    high = "" if metric.high is None else f"{metric.high:+.1%}"
    return (
        f"{metric.metric} {metric.verdict}: {metric.difference or 0:+.1%} "
        f"({low} to {high}, {counts})"
    )
