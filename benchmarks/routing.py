"""What routing gives, on real replicas of one machine, and what a decision costs.

    python benchmarks/routing.py

Two replicas, each on a core of its own. The policies take turns on the same replicas, behind the same
gateway; the cache of answers is off. The loads:

  documents  questions about ten documents of 1,600 words, 40 words of one's own, answers of 48 tokens,
             32 streams: past saturation. A replica's KV cache holds about six of the ten beside what runs
  prompts    the same with ten system prompts of 600 words; the cache again holds six
  one each   the same as each of these with two beginnings, one for each replica: as if nothing were
             ever computed twice, which no routing can beat
  alone     nothing shared, bursts of 24 requests, answers of 32 to 256 tokens
  decision  the time of one choice among 64 and among 1,024 replicas, nothing else running

Compared are `auto` with `round_robin` on the first load, and with `shortest_queue` (the fewest
requests in flight, which knows nothing of tokens or beginnings) on the second.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
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
    say,
    show_spread,
    spread,
)
from thrifty.bench import LoadPlan, Workload, run_load, summarize
from thrifty.bench.client import Target
from thrifty.bench.workload import Lengths, PlannedRequest
from thrifty.db import open_database
from thrifty.db.fleet import read_fleet, save_deployment
from thrifty.gateway.routing import make_policy
from thrifty.gateway.state.router import Router
from thrifty.http.origin import parse_origin

KV_TOKENS = {"documents": 12_500, "prompts": 6000}
SHARED_WORDS = {"documents": 1600, "prompts": 600}
TOKEN_BYTES = 13_680
"""What one token takes in this model's KV cache, in 8 bits."""
STREAMS = 32
PREFIXES = 10
WARM_UP_S = 20.0
OWN_WORDS, ANSWER = 40, 48
BURST, BURSTS, BURST_GAP_S = 24, 5, 5.0


def choose_policy(service: ThriftyService, policy: str) -> None:
    """Have the running gateway use another policy, and begin to learn anew."""
    database = open_database(f"sqlite:///{service.home / 'thrifty.db'}", migrate=False)
    (row,) = read_fleet(database).deployments
    settings = dataclasses.replace(row.settings, routing=policy)
    save_deployment(database, dataclasses.replace(row, settings=settings))
    database.close()
    time.sleep(1.0)


def measure(service: ThriftyService, plan: LoadPlan, workload: Workload) -> dict[str, float]:
    target = Target(parse_origin(service.url), "smol", None)
    result = summarize(asyncio.run(run_load(target, workload, plan)))
    if result.errors:
        raise SystemExit(f"{result.errors} errors: {result.error_samples}")
    assert result.ttft_ms is not None
    return {
        "tokens_per_s": result.output_tokens_per_s.value,
        "ttft_p50_ms": result.ttft_ms.p50,
        "ttft_p90_ms": result.ttft_ms.p90,
        "cached_share": result.cached_token_share,
    }


def measure_shared(
    service: ThriftyService, policy: str, shared: int, prefixes: int, seconds: float
) -> dict[str, float]:
    choose_policy(service, policy)
    words = shared + OWN_WORDS
    workload = Workload(
        Lengths("fixed", words, 0), Lengths("fixed", ANSWER, 0),
        prefix_share=shared / words, prefixes=prefixes, seed=time.time_ns(),
    )  # fmt: skip
    # Long enough for every beginning to have been met on either side.
    return measure(
        service, LoadPlan(duration_s=seconds, warm_up_s=WARM_UP_S, concurrency=STREAMS), workload
    )


def measure_alone(service: ThriftyService, policy: str, seed: int) -> dict[str, float]:
    choose_policy(service, policy)
    rng = random.Random(seed)
    requests = iter(
        Workload(Lengths("lognormal", 60, 0.6), Lengths("uniform", 32, 256), seed=seed).requests()
    )
    trace = []
    for burst in range(BURSTS):
        for _ in range(BURST):
            at_s = burst * BURST_GAP_S + rng.uniform(0, 0.3)
            trace.append(dataclasses.replace(next(requests), at_s=at_s))
    trace.sort(key=lambda ask: ask.at_s)
    return measure(service, LoadPlan(duration_s=0.0, warm_up_s=1.0, trace=trace), Workload())


@dataclasses.dataclass
class Copy:
    """A replica, as policies see it."""

    id: str
    slot: int
    in_flight: int = 0
    waiting: int = 0
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    rates_key: str = "v"


def measure_decisions(count: int) -> dict[str, float]:
    """Conversations of 4 KB over a fleet under load; microseconds."""
    router = Router(make_policy("auto", random.Random(1)))
    fleet = [Copy(f"r-{n}", router.learned.prefixes.join()) for n in range(count)]
    rng = random.Random(2)
    requests = Workload(Lengths("fixed", 700, 0), prefix_share=0.8, prefixes=200).requests()
    running: list[Any] = []
    describe_us, choose_us = [], []
    for number in range(6000):
        ask: PlannedRequest = next(requests)
        body = {"messages": [{"role": "user", "content": ask.prompt}], "max_tokens": 100}
        began = time.perf_counter()
        request = router.describe(body)
        described = time.perf_counter()
        chosen = router.choose(fleet, request)
        ended = time.perf_counter()
        running.append(router.begin(chosen, request, number * 1e-3))
        describe_us.append((described - began) * 1e6)
        choose_us.append((ended - described) * 1e6)
        if len(running) > 4 * count:
            load = running.pop(rng.randrange(len(running)))
            load.first_token(number * 1e-3)
            load.end(number * 1e-3, 900, 60, 500, streamed=True)
    half = len(choose_us) // 2
    choose_us = sorted(choose_us[half:])
    return {
        "choose_us": median(choose_us),
        "choose_p99_us": choose_us[int(0.99 * len(choose_us))],
        "describe_us": median(describe_us[half:]),
    }


def start(kv_tokens: int) -> ThriftyService:
    return ThriftyService(
        "routing",
        {"name": "smol", "replicas": 2, "cache": False, "gateway": {"port": free_port()},
         "engine": {"kind": "openvino", "kv_cache": kv_tokens * TOKEN_BYTES}},
    )  # fmt: skip


def measure_load(load: str, seconds: float, rounds: int) -> dict[str, Any]:
    """One load of shared beginnings, under each policy in turn, on the same replicas."""
    say(load)
    service, words = start(KV_TOKENS[load]), SHARED_WORDS[load]
    policies = {"auto": ("auto", PREFIXES), "round_robin": ("round_robin", PREFIXES),
                "auto, one each": ("auto", 2)}  # fmt: skip
    try:
        return in_turns(
            rounds,
            {
                name: lambda how=how: measure_shared(service, how[0], words, how[1], seconds)
                for name, how in policies.items()
            },
        )
    finally:
        service.stop()


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=4)
    seconds = max(options.seconds, 20.0)
    say("decisions")
    decisions = in_turns(
        max(5, options.rounds), {n: (lambda n=n: measure_decisions(n)) for n in (64, 1024)}
    )
    shared = {load: measure_load(load, seconds, options.rounds) for load in SHARED_WORDS}
    service = start(KV_TOKENS["prompts"])
    try:
        say("nothing shared")
        seeds = iter(range(10_000))
        pairs: dict[str, Any] = {p: [] for p in ("auto", "shortest_queue")}
        for number in range(2 * options.rounds):
            seed = next(seeds)
            order = list(pairs) if number % 2 else list(reversed(pairs))
            for policy in order:
                pairs[policy].append(measure_alone(service, policy, seed))
            say(f"round {number + 1} of {2 * options.rounds} done")
    finally:
        service.stop()

    def ratios(results: dict[str, Any], over: str, key: str) -> list[float]:
        return [a[key] / b[key] for a, b in zip(results["auto"], results[over], strict=True)]

    found = {
        load: [ratios(results, over, key) for over, key in (
            ("round_robin", "tokens_per_s"), ("round_robin", "ttft_p90_ms"),
            ("auto, one each", "tokens_per_s"))]
        for load, results in shared.items()
    }  # fmt: skip
    even, wait = (ratios(pairs, "shortest_queue", k) for k in ("tokens_per_s", "ttft_p90_ms"))
    at = {n: [r["choose_us"] for r in decisions[n]] for n in decisions}
    growth = [a / b for a, b in zip(at[1024], at[64], strict=True)]
    table = [("load", "policy", "tokens/s", "TTFT p50, ms", "TTFT p90, ms", "prompt tokens cached")]
    for load, results in (*shared.items(), ("alone", pairs)):
        for policy, rows in results.items():
            table.append((
                load, policy, show_spread([r["tokens_per_s"] for r in rows], "{:.0f}"),
                show_spread([r["ttft_p50_ms"] for r in rows], "{:.0f}"),
                show_spread([r["ttft_p90_ms"] for r in rows], "{:.0f}"),
                show_spread([r["cached_share"] for r in rows], "{:.0%}"),
            ))  # fmt: skip
    for count, values in at.items():
        table.append(
            (
                "decision",
                f"auto, {count} replicas",
                f"{show_spread(values, '{:.1f}')} us",
                "",
                "",
                "",
            )
        )
    finish(
        "routing",
        {"rounds": options.rounds, "seconds": seconds, "kv_tokens": KV_TOKENS, "shared": shared,
         "alone": pairs, "decisions": decisions,
         "ratios": {**{f"{load}_{key}": spread(values)
                       for load, three in found.items()
                       for key, values in zip(("tokens", "ttft_p90", "of_the_most"), three, strict=True)},
                    "alone_tokens": spread(even), "alone_ttft_p90": spread(wait),
                    "decision_growth": spread(growth)}},
        table,
        [
            *(figure(f"ten {load} past saturation, two replicas: tokens/s of `auto` over round-robin",
                     faster, ">= 2.0 x", median(faster) >= 2)
              for load, (faster, _, _) in found.items()),
            *(figure(f"the same, {load}: TTFT p90", sooner, "<= 0.25 x", median(sooner) <= 0.25)
              for load, (_, sooner, _) in found.items()),
            figure("nothing shared, bursts of long answers: tokens/s of `auto` over least-loaded", even,
                   ">= 0.98 x", median(even) >= 0.98),
            figure("the same: TTFT p90", wait, "<= 1.05 x", median(wait) <= 1.05),
            {**figure("one routing decision among 64 replicas", at[64], "<= 50 us", median(at[64]) <= 50, "{:.1f}"),
             "measured": f"{show_spread(at[64], '{:.1f}')} us"},
            figure("the same among 1,024 over among 64 (16 times as many)", growth, "< 16 x", median(growth) < 16),
        ],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
