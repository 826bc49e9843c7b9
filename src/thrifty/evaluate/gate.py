"""The gate: whether a smaller model is close enough to its reference to be served.

One number bounds two drops. On each domain, the drop is how much less probability the model gives
to a token of the text than its reference does (in the geometric mean, so it is 1 - 1 / perplexity
ratio). On questions, it is the share of the reference's right answers that the model gets wrong.
For encoders it is, on each domain, what the rank correlation of similarities lacks to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.lineage import walk_lineage
from thrifty.artifacts.measurements import Measurement
from thrifty.artifacts.verdicts import GATE
from thrifty.errors import EvaluationError
from thrifty.evaluate.answers import ANSWERS
from thrifty.evaluate.suite import EMBEDDINGS, QUALITY

MAX_DROP = 0.25
"""The default: a perplexity of 1.33 times the reference's, and three right answers in four."""
LEAST_RIGHT = 20
"""With fewer answers that the reference has right, the share that is kept says too little."""
ANSWERS_KEPT = "answers kept"

_STEPS = {
    "prune": "prune less",
    "distill": "distill for longer",
    "quantize": "keep more bits",
}


@dataclass(frozen=True)
class Verdict:
    """The drops of one model, and whether each is within the bound."""

    max_drop: float
    drops: dict[str, float]
    """By domain, and by `ANSWERS_KEPT` if the reference has enough answers right."""
    notes: tuple[str, ...] = ()
    """What was not judged, and why."""
    asked: bool = False
    """Whether it was asked questions, even if too few answers count."""
    unasked: str = ""
    """Why it could not be asked what it has to be asked. It fails then."""

    @property
    def failed(self) -> list[str]:
        """What drops by more than the bound, or is not known, the largest drop first."""
        drops = dict.fromkeys([ANSWERS_KEPT] if self.unasked else [], math.inf) | self.drops
        beyond = [name for name, drop in drops.items() if drop > self.max_drop]
        return sorted(beyond, key=lambda name: -drops[name])

    @property
    def passed(self) -> bool:
        """Whether every drop is known and within the bound."""
        return not self.failed

    @property
    def judged(self) -> list[str]:
        """What the verdict is on, by name."""
        asked = [ANSWERS_KEPT] if self.asked or self.unasked else []
        return sorted({*self.drops, *asked})

    def as_dict(self) -> dict[str, Any]:
        """The key `gate` of commands with `--json`."""
        return {
            "passed": self.passed, "max_drop": self.max_drop, "drops": self.drops,
            "failed": self.failed, "judged": self.judged, "notes": list(self.notes),
        }  # fmt: skip


def check_max_drop(max_drop: float) -> None:
    """Raise `EvaluationError` for a bound that is none."""
    if not 0 < max_drop < 1:
        raise EvaluationError(f"--max-drop is a share above 0 and below 1, not {max_drop:g}")


def drop_of_ratio(perplexity_ratio: float) -> float:
    """How much less probability a token has than with the reference, in the geometric mean."""
    return max(0.0, 1 - 1 / perplexity_ratio)


def judge(
    ratios: Mapping[str, float],
    answers: Mapping[str, Any] | None,
    max_drop: float,
    correlations: Mapping[str, float] | None = None,
    unasked: str = "",
) -> Verdict:
    """Judge perplexity ratios by domain, answers (the values of `AnswersReport.as_dict`), and for
    encoders the rank correlations by domain. `unasked` says why there are no answers of a model
    that had to be asked. Raises `EvaluationError` if there is nothing to judge.
    """
    drops = {name: drop_of_ratio(ratio) for name, ratio in ratios.items()}
    drops |= {name: max(0.0, 1 - found) for name, found in (correlations or {}).items()}
    notes = [f"the answers kept are not judged: {unasked}"] if unasked else []
    if answers is not None and answers["reference_right"] >= LEAST_RIGHT:
        drops[ANSWERS_KEPT] = 1 - answers["still_right"] / answers["reference_right"]
    elif answers is not None:
        notes.append(describe_few_right(answers["reference_right"]))
    if not drops:
        raise EvaluationError(
            "there is nothing to judge the drop on: evaluate on domains (--domain) or answers "
            "(--answers)"
        )
    return Verdict(max_drop, drops, tuple(notes), answers is not None, unasked)


def describe_few_right(right: int) -> str:
    """Why the answers kept do not count where the reference has only so many right."""
    return (
        f"the answers kept are not judged: the reference has {right} right, and at least "
        f"{LEAST_RIGHT} are needed"
    )


def judge_measured(measured: Iterable[Measurement], max_drop: float, unasked: str = "") -> Verdict:
    """Judge the measurements of one model, made beside one reference. See `judge`."""
    ratios: dict[str, float] = {}
    correlations: dict[str, float] = {}
    answers = None
    for one in measured:
        if one.kind == QUALITY and "domain" in one.values:
            ratios[one.values["domain"]] = one.values["perplexity_ratio"]
        elif one.kind == EMBEDDINGS and one.values.get("rank_correlation"):
            name = one.values.get("domain", one.values.get("text", ""))
            correlations[name] = one.values["rank_correlation"]["spearman"]
        elif one.kind == ANSWERS:
            answers = one.values
    return judge(ratios, answers, max_drop, correlations, unasked)


def describe_verdict(label: str, reference: str, verdict: Verdict, steps: Iterable[str]) -> str:
    """The verdict in words; `steps` are those that the model was made by, for advice."""
    if verdict.passed:
        worst = max(verdict.drops, key=lambda name: verdict.drops[name])
        return (
            f"{label} passes the gate: beside {reference} it drops by at most "
            f"{verdict.drops[worst]:.1%} ({worst}), and {verdict.max_drop:.0%} are allowed"
        )
    beyond = [name for name in verdict.failed if name in verdict.drops]
    if not beyond:
        return (
            f"{label} fails the gate: beside {reference}, the answers kept are not judged: "
            f"{verdict.unasked}. Its domains are within the {verdict.max_drop:.0%} that are allowed; "
            "run the same command again once the cause is removed"
        )
    found = ", ".join(f"{name} {verdict.drops[name]:.1%}" for name in beyond)
    advice = [text for step, text in _STEPS.items() if step in set(steps)]
    advice.append("learn from text of those uses")
    return (
        f"{label} fails the gate: beside {reference} it drops by more than the "
        f"{verdict.max_drop:.0%} that are allowed: {found}. What helps: {', '.join(advice)}"
    )


def list_steps(store: Store, version: NamedVersion) -> list[str]:
    """The steps of the recipes that a model and those before it were made by, newest first."""
    steps = []
    for one in walk_lineage(store, version):
        recipe = one.lineage.recipe
        quantized = recipe.get("quantize", "none") != "none"
        steps.append("quantize" if quantized else str(recipe.get("step", "")))
    return [step for step in steps if step]


def record_verdict(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    reference: NamedVersion,
    verdict: Verdict,
) -> str:
    """Record a verdict with the model; returns it in words."""
    message = describe_verdict(version.label, reference.label, verdict, list_steps(store, version))
    values = {**verdict.as_dict(), "beside": reference.label, "message": message}
    # A verdict on less leaves one on more beside it.
    conditions = {"reference": reference.artifact, "judged": verdict.judged}
    store.record_measurement(artifact.id, GATE, conditions, values)
    return message
