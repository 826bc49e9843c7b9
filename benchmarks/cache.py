"""What remembering is worth: a chat trace with repeats and a shared system prompt.

    python benchmarks/cache.py

Two replicas of the default model, closed loop, prompts of 600 words of which 540 are the same for
all (a system prompt), 32 new tokens, greedy; one request in five repeats an earlier one. Three
services with the same replicas take turns: everything on (`routing: auto`, the exact cache, shared
generations, the engine's prefix cache), everything off (round robin, no cache of either kind), and
the engine's prefix cache alone, which tells the parts from each other. Each turn asks new questions.
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
    say,
    show_spread,
    spread,
)
from thrifty.bench import LoadPlan, Workload, run_load
from thrifty.bench.client import Target
from thrifty.bench.workload import Lengths
from thrifty.http.origin import parse_origin

STREAMS = 32
PROMPT_WORDS = 600
SHARED = 0.9
REPEATS = 0.2
NEW_TOKENS = 32
WARM_UP_S = 4.0
BAR = 3.0

SPECS: dict[str, dict[str, Any]] = {
    "everything on": {"routing": "auto", "cache": True},
    "prefix cache alone": {"routing": "round_robin", "cache": False},
    "everything off": {"routing": "round_robin", "cache": False},
}


def measure(url: str, model: str, key: str, seconds: float) -> dict[str, float]:
    """Answers per second, and the times to the first token."""
    workload = Workload(
        Lengths("fixed", PROMPT_WORDS, 0),
        Lengths("fixed", NEW_TOKENS, 0),
        prefix_share=SHARED,
        repeat_share=REPEATS,
        seed=time.time_ns(),
    )
    plan = LoadPlan(duration_s=seconds, warm_up_s=WARM_UP_S, concurrency=STREAMS)
    result = asyncio.run(run_load(Target(parse_origin(url), model, key), workload, plan))
    failed = [sample.error for sample in result.samples if sample.error]
    if failed:
        raise SystemExit(f"{url}: {failed[:3]}")
    counted = [
        sample
        for sample in result.samples
        if result.window_start_s <= sample.ended_s < result.window_end_s
    ]
    if len(counted) < STREAMS:
        raise SystemExit(f"only {len(counted)} answers in {seconds:g} s; give it more --seconds")
    return {
        "answers_per_s": len(counted) / (result.window_end_s - result.window_start_s),
        "ttft_p50_ms": median(sample.ttft_s for sample in counted) * 1e3,
        "cached_share": sum(s.cached_tokens for s in counted)
        / sum(s.prompt_tokens for s in counted),
    }


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=5)
    seconds = max(options.seconds, 20.0)
    services: dict[str, ThriftyService] = {}
    keys: dict[str, str] = {}
    try:
        for name, spec in SPECS.items():
            engine = {
                "kind": "openvino",
                "kv_cache": "500MB",
                "prefix_cache": name != "everything off",
            }
            service = services[name] = ThriftyService(
                f"cache {name}",
                {"name": "smol", "replicas": 2, "gateway": {"port": free_port()}, "engine": engine,
                 **spec},
            )  # fmt: skip
            service.run("keys", "revoke", "bench")
            keys[name] = service.run("keys", "create", "--name", "bench").strip().splitlines()[-1]
            service.sleep()

        def turn(name: str):  # type: ignore[no-untyped-def]
            def run() -> dict[str, float]:
                services[name].wake()
                try:
                    found = measure(services[name].url, "smol", keys[name], seconds)
                finally:
                    services[name].sleep()
                say(f"{name}: {found['answers_per_s']:.1f} answers/s")
                return found

            return run

        results = in_turns(options.rounds, {name: turn(name) for name in services})
    finally:
        for service in services.values():
            service.stop()

    def rates(name: str) -> list[float]:
        return [result["answers_per_s"] for result in results[name]]

    ratios = {
        name: [a / b for a, b in zip(rates(name), rates("everything off"), strict=True)]
        for name in SPECS
    }
    on = ratios["everything on"]
    finish(
        "cache",
        {"streams": STREAMS, "seconds": seconds, "prompt_words": PROMPT_WORDS, "shared": SHARED,
         "repeats": REPEATS, "new_tokens": NEW_TOKENS, "results": results,
         "ratios": {name: spread(values) for name, values in ratios.items()}},
        [
            (f"{STREAMS} streams, 2 replicas", "answers/s", "TTFT p50, ms", "over everything off"),
            *(
                (name, show_spread(rates(name), "{:.1f}"),
                 show_spread([r["ttft_p50_ms"] for r in results[name]], "{:.0f}"),
                 f"{show_spread(ratios[name])} x")
                for name in SPECS
            ),
        ],
        [figure("answers/s with everything on over everything off, 20% repeats, shared system prompt", on,
                f">= {BAR:g} x", median(on) >= BAR)],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
