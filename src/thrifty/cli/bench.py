"""`thrifty bench`: parse, run, print."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import msgspec

from thrifty.bench.client import Target
from thrifty.bench.load import LoadPlan, run_load
from thrifty.bench.summary import Distribution, LevelSummary, parse_objective, summarize
from thrifty.bench.workload import Workload, parse_lengths, read_trace
from thrifty.cli.show import err, print_json, print_line, print_table
from thrifty.errors import BenchError
from thrifty.http.client import HttpClient, TransportError
from thrifty.http.origin import parse_origin
from thrifty.openai.base_urls import complete_url
from thrifty.units import parse_duration_s


def run_bench(
    *,
    url: str,
    model: str | None,
    concurrency: str | None,
    rate: str | None,
    trace: Path | None,
    prompt_tokens: str,
    output_tokens: str,
    prefix_share: float,
    prefixes: int,
    repeat_share: float,
    duration: str,
    warm_up: str,
    slo: str | None,
    chat: bool,
    ignore_eos: bool,
    key: str | None,
    seed: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run every level and print what it came to."""
    if seed is None:
        # A seed that was used before would find its answers in the exact cache.
        seed = secrets.randbits(32)
    workload = Workload(
        parse_lengths(prompt_tokens), parse_lengths(output_tokens), prefix_share, prefixes,
        repeat_share, seed,
    )  # fmt: skip
    objective = parse_objective(slo) if slo else None
    plans = _make_plans(concurrency, rate, trace, duration, warm_up, seed)
    try:
        origin = parse_origin(url.rstrip("/"))
    except ValueError as error:
        raise BenchError(str(error)) from None
    name = model or asyncio.run(_find_model(url.rstrip("/"), key))
    target = Target(origin, name, key, chat=chat, ignore_eos=ignore_eos)
    levels = [_run_level(target, workload, plan, objective) for plan in plans]
    if plot is not None:
        from thrifty.bench.plot import plot_levels

        plot_levels(levels, f"{name} at {url}", plot)
        err.print(f"Drawn: {plot}")
    if as_json:
        print_json(
            {
                "url": url,
                "model": name,
                "workload": msgspec.to_builtins(workload),
                "slo": slo,
                "runs": [level.to_json() for level in levels],
            }
        )
    else:
        _print_levels(levels)


def _run_level(target: Target, workload: Workload, plan: LoadPlan, objective: Any) -> LevelSummary:
    with err.status(f"{plan.label}...") as status:

        def tick(elapsed_s: float, ended: int) -> None:
            status.update(f"{plan.label}: {elapsed_s:.0f} s, {ended} requests ended")

        result = asyncio.run(run_load(target, workload, plan, tick))
    return summarize(result, objective)


def _make_plans(
    concurrency: str | None,
    rate: str | None,
    trace: Path | None,
    duration: str,
    warm_up: str,
    seed: int,
) -> list[LoadPlan]:
    given = [value for value in (concurrency, rate, trace) if value is not None]
    if len(given) > 1:
        raise BenchError("give one of --concurrency, --rate and --trace")
    try:
        duration_s, warm_up_s = parse_duration_s(duration), parse_duration_s(warm_up)
        if trace is not None:
            return [LoadPlan(duration_s, 0.0, trace=read_trace(trace, seed), seed=seed)]
        if rate is not None:
            return [
                LoadPlan(duration_s, warm_up_s, rate=float(r), seed=seed) for r in rate.split(",")
            ]
        levels = [int(level) for level in (concurrency or "1,8,32").split(",")]
    except ValueError as error:
        raise BenchError(f"not a number: {error}") from None
    return [LoadPlan(duration_s, warm_up_s, concurrency=level, seed=seed) for level in levels]


async def _find_model(url: str, key: str | None) -> str:
    client = HttpClient()
    headers = f"authorization: Bearer {key}\r\n".encode() if key else b""
    try:
        status, body = await client.fetch(f"{complete_url(url)}/models", headers=headers)
        models = msgspec.json.decode(body)["data"] if status == 200 else []
    except (TransportError, msgspec.DecodeError, KeyError) as error:
        raise BenchError(f"{url} does not list its models ({error}); give --model") from None
    finally:
        client.close()
    if len(models) != 1:
        names = ", ".join(entry["id"] for entry in models) or f"it answered {status}"
        raise BenchError(f"say which model with --model; there: {names}")
    return str(models[0]["id"])


def _print_levels(levels: list[LevelSummary]) -> None:
    rows = []
    for level in levels:
        speed = level.output_tokens_per_s
        good = f"{level.good_share:.1%}" if level.good_share is not None else ""
        rows.append(
            (level.level, level.requests, level.errors,
             f"{speed.value:.1f} [{speed.low:.1f}, {speed.high:.1f}]",
             f"{level.requests_per_s.value:.2f}", _show(level.ttft_ms), _show(level.tpot_ms),
             _show(level.e2e_ms), f"{level.cached_token_share:.0%}", good)
        )  # fmt: skip
    print_table(
        ("load", "requests", "errors", "tokens/s [95%]", "requests/s", "TTFT ms p50/p95/p99",
         "TPOT ms p50/p95/p99", "E2E ms p50/p95/p99", "cached", "good"), rows,
    )  # fmt: skip
    for level in levels:
        for error in level.error_samples:
            print_line(f"{level.level}: {error}")


def _show(distribution: Distribution | None) -> str:
    if distribution is None:
        return ""
    return f"{distribution.p50:.1f} / {distribution.p95:.1f} / {distribution.p99:.1f}"
