"""Rates of a live replica, measured: `thrifty simulate --fit URL`.

Prefill from prompts of two lengths, one after the other: the time to the first token is a constant
and a time for each token. Decoding from answers that run together, at several numbers of streams.
About half a minute on a replica that nobody else uses.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean, median

from thrifty.bench.client import RequestResult, Target, send_request
from thrifty.bench.load import LoadPlan, run_load
from thrifty.bench.workload import Lengths, Workload
from thrifty.errors import SimulationError
from thrifty.http.client import HttpClient
from thrifty.simulate.rates import ReplicaRates, check_rates
from thrifty.types import OnProgress, Progress, ignore_progress

SHORT, LONG = 32, 512
"""Words of the two prompts; about as many tokens."""
PROBES = 7
STREAMS = (1, 4, 8, 16, 32)
SECONDS = 4.0
"""For each number of streams."""
WARM_UP_S = 1.0
PROMPT, ANSWER = 32, 48
"""Of the requests that run together: words, tokens."""


async def measure_rates(
    target: Target,
    name: str,
    *,
    slots: int,
    chunk_tokens: int = 0,
    cache_tokens: int = 0,
    start_s: float = 0.0,
    price_per_hour: float = 0.0,
    streams: Sequence[int] = STREAMS,
    seconds: float = SECONDS,
    on_progress: OnProgress = ignore_progress,
) -> ReplicaRates:
    """Measure the replica at `target`. What cannot be seen from outside is passed in: its slots,
    the chunk of its prefill, its cache and how long it takes to start.

    Raises `SimulationError` or `BenchError` if it does not answer.
    """
    counts = sorted({min(count, slots) for count in streams})
    steps = 2 + len(counts)
    seed = time.time_ns()
    client = HttpClient()
    try:
        on_progress(Progress("fit", 0, steps, "steps"))
        short = await _probe(client, target, SHORT, seed)
        on_progress(Progress("fit", 1, steps, "steps"))
        long = await _probe(client, target, LONG, seed)
        on_progress(Progress("fit", 2, steps, "steps"))
    finally:
        client.close()
    prefill_s, fixed_s = _fit_line(short, long)
    tpot_s: dict[int, float] = {}
    for index, count in enumerate(counts):
        samples = await _measure_together(target, count, seconds, seed + index)
        together, step_s = split_tpot(samples, count, prefill_s if chunk_tokens else 0.0)
        tpot_s[together] = step_s
        on_progress(Progress("fit", 3 + index, steps, "steps"))
    return check_rates(
        ReplicaRates(
            name, slots, tpot_s, prefill_s, fixed_s, chunk_tokens, cache_tokens, start_s,
            price_per_hour, f"measured at {target.origin.url} with prompts of {SHORT} and {LONG} "
            f"words and up to {counts[-1]} streams",
        ),
        name,
    )  # fmt: skip


async def _probe(client: HttpClient, target: Target, words: int, seed: int) -> tuple[float, float]:
    """Tokens of a prompt of so many words, and the median time to its first token."""
    workload = Workload(Lengths("fixed", words, 0), Lengths("fixed", 2, 0), seed=seed)
    requests = workload.requests(f"{words} words")
    found: list[RequestResult] = []
    # The first one warms up.
    for _ in range(PROBES + 1):
        result = await send_request(client, target, next(requests))
        if result.error is not None:
            raise SimulationError(f"{target.origin.url} does not answer: {result.error}")
        found.append(result)
    tokens = median(result.prompt_tokens for result in found[1:])
    return tokens or float(words), median(result.ttft_s for result in found[1:])


def _fit_line(short: tuple[float, float], long: tuple[float, float]) -> tuple[float, float]:
    """Seconds for each token, and seconds that no token accounts for."""
    (few, few_s), (many, many_s) = short, long
    slope_s = max(0.0, (many_s - few_s) / max(1.0, many - few))
    return slope_s, max(0.0, few_s - slope_s * few)


async def _measure_together(
    target: Target, streams: int, seconds: float, seed: int
) -> list[RequestResult]:
    """Answers of requests that follow each other in so many streams."""
    workload = Workload(Lengths("fixed", PROMPT, 0), Lengths("fixed", ANSWER, 0), seed=seed)
    plan = LoadPlan(duration_s=seconds, warm_up_s=WARM_UP_S, concurrency=streams)
    result = await run_load(target, workload, plan)
    good = [one for one in result.samples if one.error is None and one.output_tokens > 1]
    if not good:
        failed = next((one.error for one in result.samples if one.error), "its answers are empty")
        raise SimulationError(f"{target.origin.url} does not answer {streams} streams: {failed}")
    # Without the warm-up, where the replica is fast enough to have answers without it.
    return [one for one in good if one.started_s >= result.window_start_s] or good


def split_tpot(
    samples: Sequence[RequestResult], streams: int, prefill_s: float
) -> tuple[int, float]:
    """How many answers were generated together, and the time for a token of each without what the
    prompts of the other streams took. `prefill_s` is 0 where prompts do not disturb answers.

    In the time of one request, every other stream has one prompt computed; the part of it that
    falls into this request's decoding is taken off.
    """
    decode_s = fmean(sample.chunk_times_s[-1] - sample.chunk_times_s[0] for sample in samples)
    tokens = fmean(sample.output_tokens - 1 for sample in samples)
    share = decode_s / (decode_s + fmean(sample.ttft_s for sample in samples))
    prompt = fmean(sample.prompt_tokens or PROMPT for sample in samples)
    disturbed_s = (streams - 1) * prompt * prefill_s * share
    # However rough the estimate, most of the time was decoding.
    pure_s = max(decode_s - disturbed_s, decode_s / 2)
    return max(1, round(streams * share)), max(1e-6, pure_s / tokens)
