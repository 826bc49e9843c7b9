"""An hour of recorded chat on real replicas: autoscaled beside as many as there may be.

    python benchmarks/autoscaled_echo.py [--speed 4] [--max 6] [--minutes 60]

Real `echo` replicas with the TTFT, TPOT, slots and load time of SmolLM2-135M in 8 bits on two AVX512
cores, behind the real gateway, with the real controller. The trace `conversation` is played `speed`
times faster, and everything that takes time in a replica is divided by it, so that an hour passes
in a quarter of one. The autoscaler's own constants are not sped up: it has a quarter of the time to
follow. The trace is multiplied so that its mean asks for 35% of what the most replicas can do.

The objective is twice the 95th percentile of the times that requests have on the most replicas. Turns
alternate; each begins with a service of its own. Compared are the share of requests within the
objective, and replica hours as the controller saw them.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

from common import (
    ThriftyService,
    figure,
    find_trace,
    finish,
    free_port,
    in_turns,
    parse_arguments,
    say,
    show_spread,
    spread,
)
from thrifty.bench import LoadPlan, Workload, run_load
from thrifty.bench.client import RequestResult, Target
from thrifty.bench.workload import WORDS, PlannedRequest
from thrifty.http.origin import parse_origin
from thrifty.simulate.outcome import pick
from thrifty.simulate.trace import TraceFaults, TraceOptions, read_trace

NAME = "echo"
TTFT_S, PREFILL_S, TPOT_S, SLOTS, LOAD_S = 0.06, 0.0004, 0.0256, 8, 3.0
"""A replica of SmolLM2-135M in 8 bits with eight streams; a prompt's token is a word."""
LETTERS = 5.5
"""Letters of a word: to `echo`, each is a token."""
TOKENS = 0.5
MEAN_LOAD = 0.35
WATCH_S = 0.5


def plan_requests(most: int, speed: float, minutes: float) -> list[PlannedRequest]:
    """The trace, multiplied to the load that it should be, and sped up."""
    path = find_trace("conversation")
    first = TraceOptions(tokens=TOKENS, length_s=60 * minutes)
    rows = list(read_trace(path, first, TraceFaults()))
    prompt = sum(one.prompt_tokens for one in rows) / len(rows)
    answer = sum(one.answer_tokens for one in rows) / len(rows)
    each_s = (TTFT_S + prompt * PREFILL_S + answer * TPOT_S) / SLOTS
    scale = MEAN_LOAD * most / each_s / (len(rows) / rows[-1].at_s)
    options = TraceOptions(speed=speed, scale=scale, tokens=TOKENS, length_s=60 * minutes, seed=1)
    rng = random.Random(1)
    return [
        PlannedRequest(
            " ".join(rng.choices(WORDS, k=max(1, round(one.prompt_tokens)))), one.answer_tokens,
            one.at_s,
        )
        for one in read_trace(path, options, TraceFaults())
    ]  # fmt: skip


def start(replicas: Any, speed: float, objective: dict[str, float] | None) -> ThriftyService:
    spec = {
        "name": NAME, "cache": False, "gateway": {"port": free_port()}, "replicas": replicas,
        "engine": {
            "kind": "echo", "ttft": f"{TTFT_S / speed}s", "tpot": f"{TPOT_S / speed}s",
            "prefill": f"{PREFILL_S / LETTERS / speed}s", "slots": SLOTS, "load": f"{LOAD_S / speed}s",
        },
    }  # fmt: skip
    if objective is not None:
        spec["slo"] = {"ttft_p95": f"{objective['ttft_s']}s", "tpot_p95": f"{objective['tpot_s']}s"}
    return ThriftyService("autoscaled_echo", spec, fresh=True)


class Watch:
    """Counts the replicas of a running service, over time."""

    def __init__(self, service: ThriftyService) -> None:
        self._service = service
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.replica_s = 0.0
        self.most = 0
        self.counts: list[int] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        from thrifty.db import open_database
        from thrifty.db.fleet import read_fleet

        path = Path(self._service.home) / "thrifty.db"
        database = open_database(f"sqlite:///{path}", migrate=False)
        last_s, count = time.monotonic(), 0
        while not self._ended.wait(WATCH_S):
            now_s = time.monotonic()
            self.replica_s += count * (now_s - last_s)
            last_s = now_s
            count = len(read_fleet(database).replicas)
            self.most = max(self.most, count)
            if not self.counts or self.counts[-1] != count:
                self.counts.append(count)
        database.close()


def play(
    replicas: Any, trace: list[PlannedRequest], speed: float, objective: dict[str, float] | None
) -> tuple[list[RequestResult], Watch]:
    service = start(replicas, speed, objective)
    try:
        target = Target(parse_origin(service.url), NAME)
        plan = LoadPlan(duration_s=0.0, warm_up_s=1.0, trace=trace)
        with Watch(service) as watch:
            result = asyncio.run(run_load(target, Workload(), plan))
        return result.samples, watch
    finally:
        service.stop()


def judge(
    samples: list[RequestResult], watch: Watch, objective: dict[str, float], speed: float
) -> dict[str, Any]:
    good = [
        one for one in samples
        if one.error is None and one.ttft_s <= objective["ttft_s"]
        and (one.tpot_s or 0.0) <= objective["tpot_s"]
    ]  # fmt: skip
    turns = sum(
        (b - a) * (c - b) < 0 for a, b, c in zip(watch.counts, watch.counts[1:], watch.counts[2:], strict=False)
    )  # fmt: skip
    return {
        "share": len(good) / len(samples),
        "replica_hours": watch.replica_s * speed / 3600,
        "most": watch.most,
        "turns": turns,
        "errors": sum(one.error is not None for one in samples),
    }


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=2, speed=(float, 4.0, "How much faster time passes."),
        max=(int, 6, "The most replicas."), minutes=(float, 60.0, "Of the trace."),
    )  # fmt: skip
    most, speed = options.max, options.speed
    trace = plan_requests(most, speed, options.minutes)
    say(f"{len(trace)} requests in {trace[-1].at_s:.0f} s; finding the objective")
    tenth = [one for one in trace if one.at_s <= trace[-1].at_s / 10]
    samples, _ = play(most, tenth, speed, None)
    failed = [one.error for one in samples if one.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(samples)} requests failed: {failed[0]}")
    objective = {
        "ttft_s": 2 * pick(sorted(one.ttft_s for one in samples), 0.95),
        "tpot_s": 2 * pick(sorted(one.tpot_s or 0.0 for one in samples), 0.95),
    }
    say(f"objective: {json.dumps(objective)}")
    found = in_turns(
        options.rounds,
        {
            "fixed": lambda: judge(*play(most, trace, speed, objective), objective, speed),
            "autoscaled": lambda: judge(
                *play({"min": 1, "max": most}, trace, speed, objective), objective, speed
            ),
        },
    )
    pairs = list(zip(found["autoscaled"], found["fixed"], strict=True))
    shares = [ours["share"] / fixed["share"] for ours, fixed in pairs]
    hours = [ours["replica_hours"] / fixed["replica_hours"] for ours, fixed in pairs]
    table: list[tuple[str, ...]] = [
        ("replicas", "within objective", "replica hours", "at most", "turns", "errors")
    ]
    for name, rows in found.items():
        table.append(
            (name, show_spread([row["share"] for row in rows], "{:.1%}"),
             show_spread([row["replica_hours"] for row in rows]), str(max(r["most"] for r in rows)),
             str(max(r["turns"] for r in rows)), str(sum(r["errors"] for r in rows)))
        )  # fmt: skip
    finish(
        "autoscaled_echo",
        {"rounds": options.rounds, "speed": speed, "max": most, "objective": objective,
         "requests": len(trace), "runs": found,
         "ratios": {"share": spread(shares), "replica_hours": spread(hours)}},
        table,
        [
            figure("an hour of chat on real `echo` replicas: share within the objective, autoscaled over "
                   "the most replicas", shares, ">= 0.97 x", min(shares) >= 0.97),
            figure("the same: replica hours", hours, "<= 0.6 x", max(hours) <= 0.6),
        ],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
