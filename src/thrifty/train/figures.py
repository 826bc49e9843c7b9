"""The figures of a training, as they are kept in the lineage of what it made."""

from __future__ import annotations

from typing import Any

from thrifty.errors import TrainingError
from thrifty.train.settings import IMPROVED_NOTHING

OPPOSITE_DEVIATIONS = 2.0
"""A share of preferred pairs that is below half by so many standard deviations is no chance."""


def summarize(report: dict[str, Any]) -> dict[str, Any]:
    """What every training tells, from the report of its process."""
    held_out = report["held_out"]
    return {
        "steps": report["step"], "tokens": report["tokens"], "before": held_out[0][1],
        "after": report["best"], "best_step": report["best_step"], "unit": report["unit"],
        "batch_tokens": report["batch_tokens"], "learning_rate": report["learning_rate"],
        "schedule": report["schedule"], "precision": report["precision"],
        "device": report["device"], "seconds": round(report["seconds"], 1),
        "losses": [round(loss, 5) for loss in report["losses"]],
        "held_out": [[step, round(value, 6)] for step, value in held_out],
        "curves": report["curves"], "forecasts": report["forecasts"],
        "falls_from": report.get("falls_from"),
    }  # fmt: skip


def find_details(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The objective's other figures before the training and in the state that is kept."""
    if not report["details"]:
        return {}
    best = max((one for one in report["details"] if one[0] <= report["best_step"]), default=None)
    first, last = report["details"][0][1], (best or report["details"][-1])[1]
    return {name: {"before": first.get(name), "after": last[name]} for name in last}


def refuse_opposite(details: dict[str, dict[str, Any]]) -> None:
    """Raise `TrainingError` where held-out rows say that the opposite was learned."""
    if "preferred" not in details:
        return
    preferred = details["preferred"]["after"]
    if preferred < 0.5 - OPPOSITE_DEVIATIONS * details["by_chance"]["after"]:
        raise TrainingError(
            f"{IMPROVED_NOTHING}: in only {preferred:.0%} of the held-out pairs did the liked answer "
            "gain more than the disliked one; the rows contradict one another, or likes and dislikes "
            "are mixed up"
        )
