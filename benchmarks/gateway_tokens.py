"""Tokens per second through the gateway over the engine's own server, 32 streams.

    python benchmarks/gateway_tokens.py

The same replica, the same load generator, in turns: once at the replica's own URL, once through
the gateway with keys, cache, metrics and log on.
"""

from __future__ import annotations

import asyncio
import time
from statistics import median

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
from thrifty.bench.workload import Lengths
from thrifty.http.origin import parse_origin

STREAMS = 32


def measure(
    url: str, model: str, key: str | None, streams: int, seconds: float
) -> dict[str, float]:
    """One level of load."""
    workload = Workload(Lengths("fixed", 128, 0), Lengths("fixed", 64, 0), seed=time.time_ns())
    plan = LoadPlan(duration_s=seconds, warm_up_s=4.0, concurrency=streams)
    result = summarize(asyncio.run(run_load(Target(parse_origin(url), model, key), workload, plan)))
    if result.errors:
        raise SystemExit(f"{url}: {result.error_samples}")
    if result.ttft_ms is None or result.tpot_ms is None:
        raise SystemExit(f"{url}: no request began and ended within {seconds:g} s")
    return {
        "tokens_per_s": result.output_tokens_per_s.value,
        "ttft_p50_ms": result.ttft_ms.p50,
        "ttft_p95_ms": result.ttft_ms.p95,
        "tpot_p50_ms": result.tpot_ms.p50,
    }


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=6)
    seconds = max(options.seconds, 15.0)
    service = ThriftyService("gateway tokens", {"gateway": {"port": free_port()}})
    service.run("keys", "revoke", "bench")
    key = service.run("keys", "create", "--name", "bench").strip().splitlines()[-1]
    model = service.status["deployments"][0]["name"]
    (replica,) = service.replica_urls
    try:
        results = in_turns(
            options.rounds,
            {
                "engine": lambda: measure(replica, model, None, STREAMS, seconds),
                "gateway": lambda: measure(service.url, model, key, STREAMS, seconds),
            },
        )
    finally:
        service.stop()
    pairs = list(zip(results["gateway"], results["engine"], strict=True))
    ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs]
    finish(
        "gateway_tokens",
        {"streams": STREAMS, "seconds": seconds, "results": results, "ratio": spread(ratios)},
        [
            (f"{STREAMS} streams", "tokens/s", "TTFT p50, ms"),
            *(
                (name, show_spread([r["tokens_per_s"] for r in results[name]], "{:.0f}"),
                 show_spread([r["ttft_p50_ms"] for r in results[name]], "{:.0f}"))
                for name in ("engine", "gateway")
            ),
            ("gateway over engine", show_spread(ratios, "{:.3f}"), ""),
        ],
        [figure(f"tokens/s through the gateway over the engine alone, {STREAMS} streams", ratios, ">= 0.98 x",
                median(ratios) >= 0.98, "{:.3f}")],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
