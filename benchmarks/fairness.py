"""One tenant at ten times its share: what the others notice of it.

    python benchmarks/fairness.py

Five tenants share two replicas of the default model. The capacity is measured first, with one
tenant and as many streams as there are slots; a tenant's share is a fifth of it. Four tenants ask at
half of their share, at random moments; and again at four fifths, where chance carries one or the
other past its share for a while, and then it waits as it should. In turns, the fifth is silent, or
asks at ten times its share: twice what the replicas can do. The figure is the 95th percentile of the
four's time to first token, with the fifth over without it.
"""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any

from common import (
    ThriftyService,
    figure,
    finish,
    free_port,
    in_turns,
    parse_arguments,
    show_spread,
    spread,
)
from thrifty.bench import LoadPlan, Workload, run_load, summarize
from thrifty.bench.client import Target
from thrifty.bench.load import LoadResult
from thrifty.bench.workload import Lengths
from thrifty.http.origin import parse_origin

TENANTS = 5
MODEST_LOADS = (0.5, 0.8)
"""Of its share, what each of the four asks for."""
GREEDY_LOAD = 10.0
SLOTS = 4
"""For each replica: past it, more streams on a core give longer waits and no more tokens."""
PROMPT = Lengths("uniform", 64, 192)
OUTPUT = Lengths("uniform", 16, 48)
WARM_UP_S = 5.0
SECONDS = 30.0


def load(service: ThriftyService, model: str, key: str, plan: LoadPlan) -> Any:
    """One tenant's load."""
    workload = Workload(PROMPT, OUTPUT, seed=time.time_ns())
    return run_load(Target(parse_origin(service.url), model, key), workload, plan)


def measure_capacity(service: ThriftyService, model: str, key: str, seconds: float) -> float:
    """Requests a second, with every slot in use."""
    plan = LoadPlan(duration_s=seconds, warm_up_s=WARM_UP_S, concurrency=2 * SLOTS)
    result = asyncio.run(load(service, model, key, plan))
    ended = [s for s in result.samples if result.window_start_s <= s.ended_s < result.window_end_s]
    return len(ended) / (result.window_end_s - result.window_start_s)


def ttfts_ms(results: list[LoadResult]) -> list[float]:
    """The times to first token of requests that began in the window. Fails where one failed."""
    found = []
    for result in results:
        for sample in result.samples:
            if result.window_start_s <= sample.started_s < result.window_end_s:
                if sample.error is not None:
                    raise SystemExit(f"a request of a modest tenant failed: {sample.error}")
                found.append(sample.ttft_s * 1e3)
    return sorted(found)


def measure(
    service: ThriftyService,
    model: str,
    keys: list[str],
    share: float,
    modest: float,
    seconds: float,
    greedy: bool,
) -> dict[str, float]:
    """One turn."""

    async def run() -> list[LoadResult]:
        plans = [
            LoadPlan(seconds, WARM_UP_S, rate=modest * share, seed=i) for i in range(TENANTS - 1)
        ]
        loads = [load(service, model, keys[i], plan) for i, plan in enumerate(plans)]
        if greedy:
            plan = LoadPlan(seconds, WARM_UP_S, rate=GREEDY_LOAD * share, seed=99)
            loads.append(load(service, model, keys[-1], plan))
        return await asyncio.gather(*loads)

    results = asyncio.run(run())
    values = ttfts_ms(results[: TENANTS - 1])
    turn = {
        "requests": float(len(values)),
        "ttft_p50_ms": values[len(values) // 2],
        "ttft_p95_ms": values[int(len(values) * 0.95)],
    }
    if greedy:
        summary = summarize(results[-1])
        turn["greedy_answers"] = float(summary.requests)
        turn["greedy_ttft_p50_ms"] = summary.ttft_ms.p50 if summary.ttft_ms else 0.0
    return turn


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=5)
    seconds = max(options.seconds, SECONDS)
    service = ThriftyService(
        "fairness",
        {
            "replicas": {"count": 2, "slots": SLOTS}, "gateway": {"port": free_port()},
            "limits": {"wait_timeout": "10m"},
        },
    )  # fmt: skip
    keys = []
    for index in range(TENANTS):
        service.run("keys", "revoke", f"tenant-{index}")
        keys.append(
            service.run("keys", "create", "--name", f"tenant-{index}").strip().splitlines()[-1]
        )
    model = service.status["deployments"][0]["name"]
    try:
        capacity = measure_capacity(service, model, keys[0], 15.0)
        share = capacity / TENANTS
        results = in_turns(
            options.rounds,
            {
                (modest, greedy): lambda m=modest, g=greedy: measure(
                    service, model, keys, share, m, seconds, greedy=g
                )
                for modest in MODEST_LOADS
                for greedy in (False, True)
            },
        )
    finally:
        service.stop()
    ratios, rows, figures = {}, [], []
    for modest in MODEST_LOADS:
        without, beside = results[modest, False], results[modest, True]
        pairs = zip(beside, without, strict=True)
        ratios[modest] = found = [a["ttft_p95_ms"] / b["ttft_p95_ms"] for a, b in pairs]
        for label, turns in (("silent", without), ("at 10 x its share", beside)):
            rows.append((f"{modest:.0%} of their share", label,
                         show_spread([r["ttft_p50_ms"] for r in turns], "{:.0f}"),
                         show_spread([r["ttft_p95_ms"] for r in turns], "{:.0f}")))  # fmt: skip
        rows.append(("", "with over without", "", show_spread(found)))
        what = f"others' TTFT p95 (at {modest:.0%} of their share) with one tenant at 10 x its share, over without"
        figures.append(figure(what, found, "<= 1.3 x", median(found) <= 1.3))
    finish(
        "fairness",
        {"capacity_per_s": capacity, "tenants": TENANTS, "slots": 2 * SLOTS, "seconds": seconds,
         "results": {f"{m:g} {'with' if g else 'without'}": r for (m, g), r in results.items()},
         "ratios": {str(m): spread(r) for m, r in ratios.items()}},
        [("the four ask at", "the greedy tenant", "others' TTFT p50, ms", "others' TTFT p95, ms"), *rows],
        figures,
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
