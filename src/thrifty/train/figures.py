"""The figures of a training, as they are kept in the lineage of what it made."""

from __future__ import annotations

from typing import Any


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
