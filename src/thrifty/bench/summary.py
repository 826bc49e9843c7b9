"""Summarize a level of load, with confidence intervals.

Intervals are 95% percentile bootstraps (Efron 1979): over requests for latencies, over slices of
the window for throughput, because consecutive tokens are not independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.bench.client import RequestResult
from thrifty.bench.load import LoadResult
from thrifty.errors import BenchError
from thrifty.units import parse_duration_s

RESAMPLES = 1000
SLICES = 20
PERCENTILES = (50, 90, 95, 99)

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Distribution:
    """Percentiles of a latency in milliseconds, and the median's 95% interval."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p50_low: float
    p50_high: float


@dataclass(frozen=True)
class LatencyObjective:
    """The latencies that a good request must not exceed. None: no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def is_met(self, sample: RequestResult) -> bool:
        """Whether a request meets the objective."""
        if sample.error is not None:
            return False
        tpot_s = sample.tpot_s or 0.0
        return (
            (self.ttft_s is None or sample.ttft_s <= self.ttft_s)
            and (self.tpot_s is None or tpot_s <= self.tpot_s)
            and (self.e2e_s is None or sample.e2e_s <= self.e2e_s)
        )


@dataclass(frozen=True)
class LevelSummary:
    """The measurements of one level of load."""

    level: str
    concurrency: int | None
    rate: float | None
    duration_s: float
    requests: int
    errors: int
    output_tokens_per_s: Estimate
    requests_per_s: Estimate
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    e2e_ms: Distribution | None
    prompt_tokens_mean: float
    output_tokens_mean: float
    cached_token_share: float
    goodput_per_s: float | None = None
    good_share: float | None = None
    error_samples: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The summary as plain data."""
        return asdict(self)


def parse_objective(text: str) -> LatencyObjective:
    """Parse `ttft=500ms,tpot=60ms,e2e=10s` or a part of it. Raises `BenchError`."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or name not in ("ttft", "tpot", "e2e"):
            raise BenchError(f"{part!r} is not an objective; write ttft=500ms,tpot=60ms,e2e=10s")
        try:
            values[f"{name}_s"] = parse_duration_s(value)
        except ValueError as error:
            raise BenchError(str(error)) from None
    return LatencyObjective(**values)


def summarize(result: LoadResult, objective: LatencyObjective | None = None) -> LevelSummary:
    """Summarize one level of load."""
    plan = result.plan
    start_s, end_s = result.window_start_s, result.window_end_s
    inside = [s for s in result.samples if start_s <= s.started_s < end_s]
    good = [s for s in inside if s.error is None]
    tokens_per_slice = _count_tokens(result.samples, start_s, end_s)
    ends = np.array([s.ended_s for s in result.samples if s.error is None])
    requests_per_slice, _ = np.histogram(ends, bins=SLICES, range=(start_s, end_s))
    slice_s = (end_s - start_s) / SLICES
    prompt_tokens = sum(s.prompt_tokens for s in good)
    met = [s for s in good if objective is not None and objective.is_met(s)]
    return LevelSummary(
        level=plan.label,
        concurrency=plan.concurrency,
        rate=plan.rate,
        duration_s=end_s - start_s,
        requests=len(inside),
        errors=len(inside) - len(good),
        output_tokens_per_s=_estimate(tokens_per_slice / slice_s, np.mean),
        requests_per_s=_estimate(requests_per_slice / slice_s, np.mean),
        ttft_ms=_distribution([s.ttft_s for s in good]),
        tpot_ms=_distribution([s.tpot_s for s in good if s.tpot_s is not None]),
        e2e_ms=_distribution([s.e2e_s for s in good]),
        prompt_tokens_mean=prompt_tokens / len(good) if good else 0.0,
        output_tokens_mean=sum(s.output_tokens for s in good) / len(good) if good else 0.0,
        cached_token_share=(
            sum(s.cached_tokens for s in good) / prompt_tokens if prompt_tokens else 0.0
        ),
        goodput_per_s=len(met) / (end_s - start_s) if objective is not None else None,
        good_share=len(met) / len(inside) if objective is not None and inside else None,
        error_samples=sorted({s.error for s in inside if s.error is not None})[:3],
    )


def _count_tokens(samples: list[RequestResult], start_s: float, end_s: float) -> FloatArray:
    """The output tokens in each slice of the window. Each chunk of a request counts as the average
    number of tokens in its chunks.
    """
    times: list[float] = []
    weights: list[float] = []
    for sample in samples:
        if sample.chunk_times_s:
            times += sample.chunk_times_s
            weights += [sample.output_tokens / len(sample.chunk_times_s)] * len(
                sample.chunk_times_s
            )
    counts, _ = np.histogram(times, bins=SLICES, range=(start_s, end_s), weights=weights)
    return counts.astype(np.float64)


def _estimate(values: FloatArray, statistic: Callable[..., Any]) -> Estimate:
    low, high = bootstrap(values, statistic)
    return Estimate(float(statistic(values)), low, high)


def _distribution(seconds: list[float]) -> Distribution | None:
    if not seconds:
        return None
    values = np.array(seconds) * 1e3
    p50, p90, p95, p99 = (float(v) for v in np.percentile(values, PERCENTILES))
    low, high = bootstrap(values, np.median)
    return Distribution(float(values.mean()), p50, p90, p95, p99, low, high)


def bootstrap(
    values: FloatArray, statistic: Callable[..., Any], seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of `statistic` over `values` (one axis)."""
    if len(values) < 2:
        only = float(values[0]) if len(values) else 0.0
        return only, only
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(values), size=(RESAMPLES, len(values)))
    results = statistic(values[draws], axis=1)
    low, high = np.percentile(results, (2.5, 97.5))
    return float(low), float(high)
