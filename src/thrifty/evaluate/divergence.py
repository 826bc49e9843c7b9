"""The divergence of a candidate's next-token distributions from a reference's, token by token.

It is the Kullback-Leibler divergence from the reference to the candidate, in nats. Of the
reference, only the k likeliest tokens and the mass of all others are known. The others count as one
outcome, which can only lower the result. By how much is measured on the predictions that were
recorded in full, and reported with the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.errors import EvaluationError
from thrifty.evaluate.reference import ReferenceRecord, Window
from thrifty.evaluate.scorer import Logprobs, Scorer
from thrifty.evaluate.statistics import FloatArray, mean_of_clusters
from thrifty.evaluate.windows import BoolArray
from thrifty.types import OnProgress, Progress, ignore_progress

RESULT = np.dtype(
    [("divergence", "<f4"), ("target", "<f4"), ("reference", "<f4"), ("same", "u1"),
     ("exact", "<f4")]
)  # fmt: skip
"""The result of one prediction: the divergence, the log-probability of the text's next token by the
candidate and by the reference, whether both have the same likeliest token, and the divergence over
the whole vocabulary (NaN if that was not recorded). The divergence is NaN where the candidate has
no prediction at that place of the text."""
Compare = Callable[[Scorer, Window], npt.NDArray[Any]]
LEAST_MASS = 1e-12
SYNC_EVERY = 16


@dataclass(frozen=True)
class TokenDistribution:
    """The distribution of a quantity over tokens."""

    mean: float
    stderr: float
    median: float
    p99: float
    p999: float


@dataclass(frozen=True)
class ProbabilityChange:
    """The change of the probability of the text's next token, candidate minus reference."""

    mean: float
    rms: float
    p1: float
    p5: float
    median: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Divergence:
    """How a candidate compares with its reference on a text."""

    kl_divergence: TokenDistribution
    same_top_token: float
    same_top_token_stderr: float
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_stderr: float
    probability_change: ProbabilityChange
    tokens: int
    windows: int
    divergence_tokens: int
    """The predictions over which `kl_divergence` and `same_top_token` were measured: all, or those
    where a model with another vocabulary has one at the same place of the text."""
    truncation: float | None
    """How much too low the mean divergence is, because only k tokens of the reference are known.
    None if no prediction that counts was recorded in full.
    """
    truncation_tokens: int
    """The number of predictions over which `truncation` was measured."""
    token_ratio: float = 1.0
    """How many tokens the candidate needs for one of the reference."""


def measure_divergence(
    scorer: Scorer,
    record: ReferenceRecord,
    results: Path,
    on_progress: OnProgress = ignore_progress,
    compare: Compare | None = None,
) -> Divergence:
    """Run `scorer` over the windows of `record`. Results are appended to the file `results`, so
    that an interrupted run resumes. `compare` gives the results of one window; the default is for
    models with the same tokens. Raises `EvaluationError`.
    """
    compare = compare or compare_window
    results.parent.mkdir(parents=True, exist_ok=True)
    lengths = record.lengths
    ends = np.cumsum(lengths - 1)
    size = results.stat().st_size if results.exists() else 0
    done = int(np.searchsorted(ends, size // RESULT.itemsize, side="right"))
    kept = int(ends[done - 1]) if done else 0
    total = int(lengths.sum())
    position = int(lengths[:done].sum())
    with results.open("ab") as file:
        file.truncate(kept * RESULT.itemsize)
        for window in record.read(done):
            file.write(compare(scorer, window).tobytes())
            file.flush()
            if window.number % SYNC_EVERY == SYNC_EVERY - 1:
                os.fsync(file.fileno())
            position += len(window.tokens)
            on_progress(Progress("evaluate", position, total, "tokens"))
        os.fsync(file.fileno())
    return summarize(np.fromfile(results, RESULT), lengths - 1, record.counted)


def compare_window(scorer: Scorer, window: Window) -> npt.NDArray[Any]:
    """The results of one window's predictions. Raises `EvaluationError`."""
    ids = np.concatenate([window.ids, window.tokens[1:, None]], axis=1)
    scored = scorer.score(window.tokens, ids, window.exact_rows)
    target = scored.logprobs[:, -1]
    if not np.isfinite(target).all():
        raise EvaluationError(
            f"{scorer.label} computes log-probabilities that are not finite in window "
            f"{window.number}"
        )
    found = np.zeros(len(target), RESULT)
    found["divergence"] = coarse_divergence(window.logprobs, window.tail, scored.logprobs[:, :-1])
    found["target"] = target
    found["reference"] = window.target
    found["same"] = scored.top == window.ids[:, 0]
    found["exact"] = np.nan
    if window.exact_rows and scored.full.size:
        p = window.exact.astype(np.float64)
        terms = np.exp(p) * (p - scored.full)
        found["exact"][window.exact_rows] = terms.sum(axis=1)
    return found


def coarse_divergence(reference: Logprobs, tail: Logprobs, candidate: Logprobs) -> FloatArray:
    """The divergence with all tokens beyond the first k as one outcome, [T].

    Args:
        reference: Log-probabilities of the k likeliest tokens, [T, k].
        tail: The probability mass of all other tokens, [T].
        candidate: Log-probabilities of the same k tokens, [T, k]; NaN for tokens whose probability
            is unknown, which then count among the others.
    """
    known = np.isfinite(candidate)
    p_log = reference.astype(np.float64)
    q_log = np.where(known, candidate, 0.0).astype(np.float64)
    p = np.exp(p_log)
    # Normalize, so that rounding does not add probability mass.
    p *= ((1 - tail.astype(np.float64)) / p.sum(axis=1))[:, None]
    terms = np.where(known, p * (np.log(np.maximum(p, LEAST_MASS)) - q_log), 0.0)
    rest_p = np.maximum(1 - np.where(known, p, 0.0).sum(axis=1), LEAST_MASS)
    rest_q = np.maximum(1 - np.where(known, np.exp(q_log), 0.0).sum(axis=1), LEAST_MASS)
    rest = rest_p * np.log(rest_p / rest_q)
    divergence: FloatArray = np.maximum(terms.sum(axis=1) + rest, 0)
    return divergence


def summarize(
    found: npt.NDArray[Any], sizes: npt.NDArray[np.int64], counted: BoolArray
) -> Divergence:
    """Summarize the predictions that count; `sizes` are the numbers of predictions in each
    window.
    """
    compared = counted & ~np.isnan(found["divergence"])
    clusters = _count_by_window(counted, sizes)
    shared = _count_by_window(compared, sizes)
    both, found = found[compared], found[counted]
    divergence = both["divergence"]
    mean = mean_of_clusters(divergence, shared)
    median, p99, p999 = np.quantile(divergence, [0.5, 0.99, 0.999])
    target, reference = found["target"].astype(np.float64), found["reference"].astype(np.float64)
    ratio = mean_of_clusters(reference - target, clusters)
    same = mean_of_clusters(both["same"].astype(np.float64), shared)
    change = np.exp(target) - np.exp(reference)
    p1, p5, middle, p95, p99_change = np.quantile(change, [0.01, 0.05, 0.5, 0.95, 0.99])
    whole = ~np.isnan(both["exact"])
    lost = both["exact"][whole].astype(np.float64) - divergence[whole]
    factor = float(np.exp(ratio.mean))
    return Divergence(
        kl_divergence=TokenDistribution(
            mean.mean, mean.stderr, float(median), float(p99), float(p999)
        ),
        same_top_token=same.mean,
        same_top_token_stderr=same.stderr,
        perplexity=float(np.exp(-target.mean())),
        reference_perplexity=float(np.exp(-reference.mean())),
        perplexity_ratio=factor,
        perplexity_ratio_stderr=factor * ratio.stderr,
        probability_change=ProbabilityChange(
            float(change.mean()), float(np.sqrt(np.mean(change**2))), float(p1), float(p5),
            float(middle), float(p95), float(p99_change),
        ),
        tokens=len(found),
        windows=len(clusters),
        divergence_tokens=len(both),
        truncation=float(lost.mean()) if whole.any() else None,
        truncation_tokens=int(whole.sum()),
    )  # fmt: skip


def _count_by_window(chosen: BoolArray, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """How many predictions are chosen in each window that has any, from those of all windows."""
    counts = np.add.reduceat(chosen, np.cumsum(sizes) - sizes, dtype=np.int64)
    return counts[counts > 0].astype(np.float64)
