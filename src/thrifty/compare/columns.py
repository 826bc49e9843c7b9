"""A comparison as cells of text: the same on a terminal and in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thrifty.compare.table import Comparison, Row
from thrifty.types import Family
from thrifty.units import format_bytes, format_duration

DIVERGENCE = ("KL divergence", "same top token", "perplexity")
EMBEDDINGS = ("cosine", "rank correlation", "same nearest")
STREAMS = ("1", "8")
TOGETHER = ("1", "32")
"""Texts in a request for embeddings."""


def make_columns(comparison: Comparison) -> tuple[str, ...]:
    """The heads of the columns."""
    if comparison.family is Family.ENCODER:
        quality = EMBEDDINGS
        speeds = [f"texts/s, {n} a request" for n in TOGETHER]
    else:
        quality = DIVERGENCE
        speeds = [f"tok/s, {n} stream{'s' if n != '1' else ''}" for n in STREAMS]
    return ("model", "weights", "size", "bits", *quality, *comparison.tasks, "load", *speeds)


def make_cells(comparison: Comparison, row: Row) -> tuple[str, ...]:
    """One model's cells; empty where nothing is known."""
    speed = row.speed
    if comparison.family is Family.ENCODER:
        quality, together = say_embeddings(row.embeddings), TOGETHER
        speeds = (speed or {}).get("texts_per_s", {})
    else:
        quality, together = say_divergence(row.quality), STREAMS
        speeds = (speed or {}).get("tokens_per_s", {})
    return (
        row.name,
        row.form,
        format_bytes(row.size_bytes) if row.size_bytes else "",
        f"{row.bits_per_weight:.1f}" if row.bits_per_weight else "",
        *quality,
        *(_say_task(row, task) for task in comparison.tasks),
        format_duration(speed["load_s"]) if speed else "",
        *(f"{speeds[n]:.0f}" if n in speeds else "" for n in together),
    )


def say_divergence(found: dict[str, Any] | None) -> tuple[str, str, str]:
    """Cells of a decoder's quality, for `DIVERGENCE`."""
    if found is None:
        return "", "", ""
    kl = found["kl_divergence"]
    return (
        say_error(kl["mean"], kl["stderr"]),
        f"{found['same_top_token']:.1%}",
        f"{found['perplexity_ratio']:.3f} x",
    )


def say_embeddings(found: dict[str, Any] | None) -> tuple[str, str, str]:
    """Cells of an encoder's, for `EMBEDDINGS`."""
    if found is None:
        return "", "", ""
    cosine, ranks = found["cosine"], found["rank_correlation"]
    return (
        say_error(cosine["mean"], cosine["stderr"]) if cosine else "another width",
        say_error(ranks["spearman"], ranks["stderr"]) if ranks else "",
        f"{found['same_nearest']:.1%}" if found["same_nearest"] is not None else "",
    )


def say_error(value: float, error: float) -> str:
    """A figure and its error, in as many places as the error calls for."""
    places = 4 if error <= 0 else min(7, max(4, -math.floor(math.log10(error))))
    return f"{value:.{places}f} ± {error:.{places}f}"


def name_processor(conditions: Mapping[str, Any]) -> str:
    """A processor and its features, on which 8-bit arithmetic depends."""
    features = conditions.get("features")
    return f"{conditions['processor']}" + (f" ({', '.join(features)})" if features else "")


def describe_conditions(comparison: Comparison) -> list[str]:
    """What the columns were measured on, a sentence each."""
    said = []
    text, speed = comparison.text, comparison.speed
    encoder = comparison.family is Family.ENCODER
    if text and encoder and any(row.embeddings for row in comparison.rows):
        said.append(
            f"Cosine of a text's two embeddings (mean, ± standard error), rank correlation of the similarities of pairs, and how "
            f"many texts have the same nearest one: beside {comparison.reference} in float32, on {text['name']} "
            f"(at most {text['texts']:,} passages, sha256 {text['text_sha256'][:12]}); {text['engine']}, {name_processor(text)}."
        )
    if text and any(row.quality for row in comparison.rows):
        said.append(
            f"KL divergence (nats a token, ± standard error), same top token and perplexity: beside "
            f"{comparison.reference} in float32, on {text['name']} (at most {text['tokens']:,} tokens, "
            f"sha256 {text['text_sha256'][:12]}); {text['engine']}, {name_processor(text)}."
        )
    if comparison.tasks:
        said.append(
            "Tasks: share of right answers (or the task's own figure), and its difference from the reference on the same items "
            "with a 95% interval."
        )
    what = (
        f"texts a second: {speed['engine']}, {speed['threads']} threads of {name_processor(speed)}, texts of "
        f"{speed['prompt_tokens']} words, one request at a time"
        if encoder
        else f"tokens a second: {speed['engine']}, {speed['threads']} threads of {name_processor(speed)}, "
        f"prompts of {speed['prompt_tokens']} tokens, answers of {speed['output_tokens']}"
    )
    said.append(f"Load time and {what}; one replica, without the gateway.")
    said.append("Bits: of all weights, embedding table and scales included.")
    busy = [row.name for row in comparison.rows if (row.speed or {}).get("busy_before", 0) > 0.25]
    if busy:
        said.append(
            f"The machine was busy when the speed of {', '.join(busy)} was measured; "
            "measure it again on an idle one (--speed-again)."
        )
    return said


def _say_task(row: Row, task: str) -> str:
    found = row.tasks.get(task)
    if found is None:
        return ""
    figure = "{:.1%}" if found.get("is_share", True) else "{:.3f}"
    change = "{:+.1%}" if found.get("is_share", True) else "{:+.3f}"
    low, high = (change.format(found[f"difference_{end}"]) for end in ("low", "high"))
    return (
        f"{figure.format(found['score'])}, {change.format(found['difference'])} ({low} to {high})"
    )
