"""A comparison as cells of text: the same on a terminal and in a report."""

from __future__ import annotations

import math

from thrifty.compare.table import Comparison, Row
from thrifty.units import format_bytes, format_duration

STREAMS = ("1", "8")


def make_columns(comparison: Comparison) -> tuple[str, ...]:
    """The heads of the columns."""
    return (
        "model", "weights", "size", "bits", "KL divergence", "same top token", "perplexity",
        *comparison.tasks, "load", *(f"tok/s, {n} stream{'s' if n != '1' else ''}" for n in STREAMS),
    )  # fmt: skip


def make_cells(comparison: Comparison, row: Row) -> tuple[str, ...]:
    """One model's cells; empty where nothing is known."""
    quality, speed = row.quality, row.speed
    speeds = (speed or {}).get("tokens_per_s", {})
    return (
        row.name,
        row.form,
        format_bytes(row.size_bytes) if row.size_bytes else "",
        f"{row.bits_per_weight:.1f}" if row.bits_per_weight else "",
        say_error(quality["kl_divergence"]["mean"], quality["kl_divergence"]["stderr"])
        if quality
        else "",
        f"{quality['same_top_token']:.1%}" if quality else "",
        f"{quality['perplexity_ratio']:.3f} x" if quality else "",
        *(_say_task(row, task) for task in comparison.tasks),
        format_duration(speed["load_s"]) if speed else "",
        *(f"{speeds[n]:.0f}" if n in speeds else "" for n in STREAMS),
    )


def say_error(value: float, error: float) -> str:
    """A figure and its error, in as many places as the error calls for."""
    places = 4 if error <= 0 else min(7, max(4, -math.floor(math.log10(error))))
    return f"{value:.{places}f} ± {error:.{places}f}"


def describe_conditions(comparison: Comparison) -> list[str]:
    """What the columns were measured on, a sentence each."""
    said = []
    text, speed = comparison.text, comparison.speed
    if text:
        said.append(
            f"KL divergence (nats a token, ± standard error), same top token and perplexity: beside "
            f"{comparison.reference} in float32, on {text['name']} (at most {text['tokens']:,} tokens, "
            f"sha256 {text['text_sha256'][:12]}); {text['engine']}, {text['processor']}."
        )
    if comparison.tasks:
        said.append(
            "Tasks: share of right answers, and its difference from the reference on the same items "
            "with a 95% interval."
        )
    said.append(
        f"Load time and tokens a second: {speed['engine']}, {speed['threads']} threads of "
        f"{speed['processor']}, prompts of {speed['prompt_tokens']} tokens, answers of "
        f"{speed['output_tokens']}; one replica, without the gateway."
    )
    said.append("Bits: of all weights, embedding table and scales included.")
    busy = [row.name for row in comparison.rows if (row.speed or {}).get("busy_before", 0) > 0.25]
    if busy:
        said.append(
            f"The machine was busy when the speed of {', '.join(busy)} was measured; it may be faster."
        )
    return said


def _say_task(row: Row, task: str) -> str:
    found = row.tasks.get(task)
    if found is None:
        return ""
    return (
        f"{found['score']:.1%}, {found['difference']:+.1%} "
        f"({found['difference_low']:+.1%} to {found['difference_high']:+.1%})"
    )
