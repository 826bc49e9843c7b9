"""A comparison as cells of text: the same in the terminal and in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thrifty.compare.answers import COLUMNS as ANSWER_COLUMNS
from thrifty.compare.answers import make_cells as make_answer_cells
from thrifty.compare.table import Comparison, Row
from thrifty.evaluate.statistics import Z_95
from thrifty.types import Family
from thrifty.units import format_bytes, format_duration

DIVERGENCE = ("KL divergence", "same top token", "perplexity")
DOMAIN = ("tokens", "KL divergence", "95%", "perplexity", "95%", "same top token")
"""The columns of one domain of a decoder."""
EMBEDDINGS = ("cosine", "rank correlation", "same nearest")
AGREEMENT = ("texts", "rank correlation", "95%", "cosine", "95%", "same nearest")
"""The columns of one domain of an encoder."""
STREAMS = ("1", "8")
BATCH_SIZES = ("1", "32")
"""Texts in a request for embeddings."""


def make_columns(comparison: Comparison) -> tuple[str, ...]:
    """The column headers."""
    if comparison.family is Family.ENCODER:
        quality: tuple[str, ...] = EMBEDDINGS
        speeds = [f"texts/s, {n} per request" for n in BATCH_SIZES]
    else:
        quality = DIVERGENCE
        speeds = [f"tok/s, {n} stream{'s' if n != '1' else ''}" for n in STREAMS]
    asked = ANSWER_COLUMNS if _has_answers(comparison) else ()
    return (
        "model",
        "weights",
        "size",
        "bits",
        *("worst domain",)[len(comparison.domains) < 2 :],
        *quality,
        *asked,
        *comparison.tasks,
        "load",
        *speeds,
    )


def _has_answers(comparison: Comparison) -> bool:
    return any(row.answers for row in comparison.rows)


def make_cells(comparison: Comparison, row: Row) -> tuple[str, ...]:
    """One model's cells; empty where a value is unknown."""
    speed = row.speed
    if comparison.family is Family.ENCODER:
        quality: tuple[str, ...] = format_embeddings(row.quality)
        levels = BATCH_SIZES
        speeds = (speed or {}).get("texts_per_s", {})
    else:
        quality = format_divergence(row.quality)
        levels = STREAMS
        speeds = (speed or {}).get("tokens_per_s", {})
    return (
        row.name,
        row.form,
        format_bytes(row.size_bytes) if row.size_bytes else "",
        f"{row.bits_per_weight:.1f}" if row.bits_per_weight else "",
        *(row.worst or "",)[len(comparison.domains) < 2 :],
        *quality,
        *(make_answer_cells(row.answers) if _has_answers(comparison) else ()),
        *(_format_task(row, task) for task in comparison.tasks),
        format_duration(speed["load_s"]) if speed else "",
        *(f"{speeds[n]:.0f}" if n in speeds else "" for n in levels),
    )


def format_divergence(found: dict[str, Any] | None) -> tuple[str, str, str]:
    """The cells of a decoder's quality, for `DIVERGENCE`."""
    if found is None:
        return "", "", ""
    kl = found["kl_divergence"]
    return (
        format_error(kl["mean"], kl["stderr"]),
        f"{found['same_top_token']:.1%}",
        f"{found['perplexity_ratio']:.3f} x",
    )


def format_domain(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of one domain, for `DOMAIN`."""
    kl, ratio = found["kl_divergence"], found["perplexity_ratio"]
    return (
        f"{found['tokens']:,}",
        f"{kl['mean']:.4f}",
        format_interval(kl["mean"], kl["stderr"], least=0.0),
        f"{ratio:.3f} x",
        format_interval(ratio, found["perplexity_ratio_stderr"], places=3),
        f"{found['same_top_token']:.1%}",
    )


def format_agreement(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of one domain, for `AGREEMENT`."""
    ranks, cosine, nearest = found["rank_correlation"], found["cosine"], found["same_nearest"]
    return (
        f"{found['texts']:,}",
        f"{ranks['spearman']:.5f}" if ranks else "",
        format_interval(ranks["spearman"], ranks["stderr"], 5, most=1.0) if ranks else "",
        f"{cosine['mean']:.5f}" if cosine else "different width",
        format_interval(cosine["mean"], cosine["stderr"], 5, most=1.0) if cosine else "",
        f"{nearest:.1%}" if nearest is not None else "",
    )


def format_interval(
    value: float,
    stderr: float,
    places: int = 4,
    least: float = -math.inf,
    most: float = math.inf,
) -> str:
    """The 95% interval of a value between `least` and `most`."""
    low, high = max(least, value - Z_95 * stderr), min(most, value + Z_95 * stderr)
    return f"{low:.{places}f} to {high:.{places}f}"


def describe_worst(name: str, found: Mapping[str, Any]) -> str:
    """The worst domain in one sentence, which stands for the model."""
    ranks = found.get("rank_correlation")
    if ranks is not None:
        interval = format_interval(ranks["spearman"], ranks["stderr"], 5, most=1.0)
        return f"Worst domain: {name}, rank correlation {ranks['spearman']:.5f} ({interval})"
    kl, ratio = found["kl_divergence"], found["perplexity_ratio"]
    return (
        f"Worst domain: {name}, perplexity {ratio:.3f} x "
        f"({format_interval(ratio, found['perplexity_ratio_stderr'], places=3)}), "
        f"KL divergence {kl['mean']:.4f} ({format_interval(kl['mean'], kl['stderr'], least=0.0)})"
    )


def make_domain_table(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The headers, and a row for each model and domain; no rows if there is only one domain."""
    encoder = comparison.family is Family.ENCODER
    form = format_agreement if encoder else format_domain
    rows = [
        (row.name, f"{name} (worst)" if name == row.worst else name, *form(found))
        for row in comparison.rows
        for name, found in row.domains.items()
        if len(comparison.domains) > 1
    ]
    return ("model", "domain", *(AGREEMENT if encoder else DOMAIN)), rows


def format_embeddings(found: dict[str, Any] | None) -> tuple[str, str, str]:
    """The cells of an encoder's quality, for `EMBEDDINGS`."""
    if found is None:
        return "", "", ""
    cosine, ranks = found["cosine"], found["rank_correlation"]
    return (
        format_error(cosine["mean"], cosine["stderr"]) if cosine else "different width",
        format_error(ranks["spearman"], ranks["stderr"]) if ranks else "",
        f"{found['same_nearest']:.1%}" if found["same_nearest"] is not None else "",
    )


def format_error(value: float, error: float) -> str:
    """A value and its standard error, with as many decimal places as the error justifies."""
    places = 4 if error <= 0 else min(7, max(4, -math.floor(math.log10(error))))
    return f"{value:.{places}f} ± {error:.{places}f}"


def name_processor(conditions: Mapping[str, Any]) -> str:
    """A processor and its features, on which 8-bit arithmetic depends."""
    features = conditions.get("features")
    return f"{conditions['processor']}" + (f" ({', '.join(features)})" if features else "")


def describe_conditions(comparison: Comparison) -> list[str]:
    """The conditions of the columns' measurements, one sentence each."""
    sentences = []
    domains, speed = comparison.domains, comparison.speed
    encoder = comparison.family is Family.ENCODER
    named = ", ".join(_describe_data(one) for one in domains)
    where = f"the worst of the domains {named}" if len(domains) > 1 else named
    measured = any(row.domains for row in comparison.rows)
    if measured and encoder:
        sentences.append(
            "Cosine similarity of a text's two embeddings (mean, ± standard error), rank "
            "correlation of the similarities of pairs, and the share of texts with the same "
            f"nearest neighbour: relative to {comparison.reference} in float32, on {where} "
            f"(at most {domains[0]['texts']:,} texts of each); {domains[0]['engine']}, "
            f"{name_processor(domains[0])}."
        )
    elif measured:
        sentences.append(
            "KL divergence (nats per token, ± standard error), same top token and perplexity: "
            f"relative to {comparison.reference} in float32, on {where} (at most "
            f"{domains[0]['tokens']:,} tokens of each; in conversations, those of the assistant "
            f"count); {domains[0]['engine']}, {name_processor(domains[0])}."
        )
    if _has_answers(comparison):
        asked = next(row.answers for row in comparison.rows if row.answers)
        sentences.append(
            f"Still right: of the short questions that {asked['beside']} answers correctly, the "
            "share that the model does too (95% interval). Empty answers, loops, and answers that "
            "ignore the question are counted by their form. Greedy, through the engine that serves."
        )
    if comparison.tasks:
        sentences.append(
            "Tasks: share of correct answers (or the task's own metric), and its difference from "
            "the reference on the same items with a 95% interval."
        )
    machine = f"{speed['engine']}, {speed['threads']} threads of {name_processor(speed)}"
    if encoder:
        unit = f"texts per second: {machine}, texts of {speed['prompt_tokens']} words, one request "
        unit += "at a time"
    else:
        unit = f"tokens per second: {machine}, prompts of {speed['prompt_tokens']} tokens, answers "
        unit += f"of {speed['output_tokens']}"
    sentences.append(f"Load time and {unit}; one replica, without the gateway.")
    sentences.append("Bits: per weight, over all weights, embedding table and scales included.")
    busy = [row.name for row in comparison.rows if (row.speed or {}).get("busy_before", 0) > 0.25]
    if busy:
        sentences.append(
            f"The machine was busy when the speed of {', '.join(busy)} was measured; "
            "measure it again on an idle one (--speed-again)."
        )
    return sentences


def _describe_data(conditions: Mapping[str, Any]) -> str:
    checksum = conditions.get("domain_sha256") or conditions["text_sha256"]
    return f"{conditions['name']} (sha256 {checksum[:12]})"


def _format_task(row: Row, task: str) -> str:
    found = row.tasks.get(task)
    if found is None:
        return ""
    figure = "{:.1%}" if found.get("is_share", True) else "{:.3f}"
    change = "{:+.1%}" if found.get("is_share", True) else "{:+.3f}"
    low, high = (change.format(found[f"difference_{end}"]) for end in ("low", "high"))
    return (
        f"{figure.format(found['score'])}, {change.format(found['difference'])} ({low} to {high})"
    )
