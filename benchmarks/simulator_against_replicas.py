"""Is the simulation true? The same trace on real replicas and simulated, in turns.

    python benchmarks/simulator_against_replicas.py [--minutes 4] [--engine-minutes 2]

echo    two real `echo` replicas with a TTFT, a time for each token of prompts and answers, slots and
        a prefix cache, behind the real gateway, under a stretch of the trace that fills their slots
        and queues; then the simulation with the options' own rates
engine  one real replica of SmolLM2-135M; its rates are measured first (`--fit`), then as above

Compared are output tokens a second, and the median and 95th percentile of the time to the first
token. The simulation gets the lengths that the service reported, at the times that were planned.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from common import ThriftyService, find_trace, finish, free_port, parse_arguments, say, show_spread
from thrifty.bench import LoadPlan, Workload, run_load
from thrifty.bench.client import RequestResult, Target
from thrifty.bench.workload import WORDS, PlannedRequest
from thrifty.http.origin import parse_origin
from thrifty.simulate.measure import measure_rates
from thrifty.simulate.outcome import pick
from thrifty.simulate.rates import ReplicaRates, make_echo_rates
from thrifty.simulate.scaler import Bounds, FixedCount, Objective
from thrifty.simulate.trace import TraceFaults, TraceOptions, TraceRequest, read_trace
from thrifty.simulate.world import Setup, simulate

ECHO = {"ttft": 0.05, "tpot": 0.02, "prefill": 0.0001, "slots": 6, "cache": 0, "load": 1.0}
ECHO_REPLICAS = 2
TOKENS = {"echo": 0.3, "engine": 0.15}
"""Of the trace's lengths. A token of `echo` is a byte, so its prompts have a sixth of the words."""
LOAD = {"echo": 0.75, "engine": 0.6}
"""The part of what the replicas can do that the trace asks for on average; bursts ask for more."""
BARS = {
    "tokens_per_s": ("tokens/s", 0.07),
    "ttft_p50_s": ("TTFT p50", 0.09),
    "ttft_p95_s": ("TTFT p95", 0.20),
}
WAITING, WAIT_TIMEOUT_S = 1000, 120.0


def plan_requests(
    kind: str, rates: ReplicaRates, replicas: int, minutes: float, seed: int
) -> list[PlannedRequest]:
    """A stretch of the trace, sped up so that the replicas are as busy as they should be."""
    options = TraceOptions(tokens=TOKENS[kind], skip_s=600.0 * (1 + seed % 4), length_s=900.0)
    stretch = list(read_trace(find_trace("conversation"), options, TraceFaults()))
    prompt = sum(one.prompt_tokens for one in stretch) / len(stretch)
    answer = sum(one.answer_tokens for one in stretch) / len(stretch)
    if rates.chunk_tokens:
        full = rates.slots if rates.slots < 16 else 16
        each_s = prompt * rates.prefill_s + answer * rates.tpot_at(full) / full
    else:
        each_s = (
            rates.fixed_s + prompt * rates.prefill_s + answer * rates.tpot_at(1)
        ) / rates.slots
    rate = LOAD[kind] * replicas / each_s
    speed = rate / (len(stretch) / stretch[-1].at_s)
    rng = random.Random(seed)
    letters = 5.5 if kind == "echo" else 1.0
    planned = []
    for one in stretch:
        if one.at_s / speed > 60 * minutes:
            break
        words = rng.choices(WORDS, k=max(1, round(one.prompt_tokens / letters)))
        planned.append(PlannedRequest(" ".join(words), one.answer_tokens, one.at_s / speed))
    return planned


def run_real(
    service: ThriftyService, name: str, trace: list[PlannedRequest]
) -> list[RequestResult]:
    target = Target(parse_origin(service.url), name)
    plan = LoadPlan(duration_s=0.0, warm_up_s=1.0, trace=trace)
    samples = asyncio.run(run_load(target, Workload(), plan)).samples
    failed = [sample.error for sample in samples if sample.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    return sorted(samples, key=lambda sample: sample.started_s)


def summarize_real(samples: list[RequestResult]) -> dict[str, float]:
    ttft = sorted(sample.ttft_s for sample in samples)
    duration_s = max(sample.ended_s for sample in samples) - samples[0].started_s
    return {
        "tokens_per_s": sum(sample.output_tokens for sample in samples) / duration_s,
        "ttft_p50_s": pick(ttft, 0.5),
        "ttft_p95_s": pick(ttft, 0.95),
    }


def run_simulated(
    rates: ReplicaRates, replicas: int, samples: list[RequestResult]
) -> dict[str, float]:
    began_s = samples[0].started_s
    trace = [
        TraceRequest(one.started_s - began_s, one.prompt_tokens, max(1, one.output_tokens))
        for one in samples
    ]
    setup = Setup(
        rates, Objective(), Bounds(replicas, replicas), waiting=WAITING,
        wait_timeout_s=WAIT_TIMEOUT_S,
    )  # fmt: skip
    found = simulate(iter(trace), setup, FixedCount(replicas), "simulated")
    return {
        "tokens_per_s": found.output_tokens_per_s,
        "ttft_p50_s": found.ttft_p50_s,
        "ttft_p95_s": found.ttft_p95_s,
    }


def start(kind: str) -> ThriftyService:
    engine: dict[str, Any] = {"kind": "openvino"}
    if kind == "echo":
        engine = {"kind": "echo", **{key: f"{value}s" for key, value in ECHO.items() if isinstance(value, float)},
                  "slots": ECHO["slots"], "cache": ECHO["cache"]}  # fmt: skip
    return ThriftyService(
        f"simulator_{kind}",
        {"name": kind, "engine": engine, "cache": False, "gateway": {"port": free_port()},
         "replicas": ECHO_REPLICAS if kind == "echo" else 1,
         "limits": {"waiting": WAITING, "wait_timeout": f"{WAIT_TIMEOUT_S}s"}},
    )  # fmt: skip


def find_rates(kind: str, service: ThriftyService) -> ReplicaRates:
    if kind == "echo":
        return make_echo_rates(kind, ECHO, 0.0)
    say("measuring the replica")
    target = Target(parse_origin(service.replica_urls[0]), kind, is_measurement=True)
    return asyncio.run(measure_rates(target, kind, slots=128, chunk_tokens=256))


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=3, minutes=(float, 4.0, "Of each stretch on echo replicas."),
        **{"engine-minutes": (float, 2.0, "Of each stretch on the engine; 0: none.")},
    )  # fmt: skip
    table: list[tuple[str, ...]] = [
        ("replicas", "", "tokens/s", "TTFT p50, ms", "TTFT p95, ms", "requests")
    ]
    record: dict[str, Any] = {}
    figures = []
    for kind, minutes in (("echo", options.minutes), ("engine", options.engine_minutes)):
        if not minutes:
            continue
        replicas = ECHO_REPLICAS if kind == "echo" else 1
        service = start(kind)
        try:
            rates = find_rates(kind, service)
            rounds = []
            for seed in range(options.rounds):
                trace = plan_requests(kind, rates, replicas, minutes, seed)
                samples = run_real(service, kind, trace)
                real = summarize_real(samples)
                rounds.append((len(samples), real, run_simulated(rates, replicas, samples)))
                say(f"{kind}: round {seed + 1} of {options.rounds} done")
        finally:
            service.stop()
        for index, name in ((1, "real"), (2, "simulated")):
            rows = [one[index] for one in rounds]
            table.append(
                (kind, name, show_spread([row["tokens_per_s"] for row in rows], "{:.0f}"),
                 show_spread([1e3 * row["ttft_p50_s"] for row in rows], "{:.0f}"),
                 show_spread([1e3 * row["ttft_p95_s"] for row in rows], "{:.0f}"),
                 str(sum(one[0] for one in rounds)))
            )  # fmt: skip
        for key, (what, bar) in BARS.items():
            errors = [one[2][key] / one[1][key] - 1 for one in rounds]
            worst = max(errors, key=abs)
            figures.append({
                "figure": f"simulation over real replicas, {kind}: {what}",
                "measured": f"{worst:+.1%} at worst, {len(errors)} rounds",
                "bar": f"within {bar:.0%}", "met": abs(worst) <= bar,
            })  # fmt: skip
        record[kind] = {
            "rounds": [{"requests": n, "real": real, "simulated": sim} for n, real, sim in rounds],
            "rates": {"tpot_s": rates.tpot_s, "prefill_s": rates.prefill_s, "fixed_s": rates.fixed_s,
                      "source": rates.source},
        }  # fmt: skip
    finish("simulator_against_replicas", {"rounds": options.rounds, **record}, table, figures,
           save=not options.no_save)  # fmt: skip


if __name__ == "__main__":
    main()
