"""Tokens per second of what `engine: auto` takes, beside each engine by itself, at the stated load.

    python benchmarks/engine_auto.py
    THRIFTY_VLLM_PYTHON=.make/vllm/.../bin/python python benchmarks/engine_auto.py

SmolLM2-135M with 8-bit weights everywhere. One service for each engine by name, and one with `engine:
auto` for each load: 1, 8 and 32 streams, and none stated. Each service of `auto` makes its own choice
in a fresh home, alone on the machine, as a user's first start does. Then all are loaded at once and
asleep (SIGSTOP) while another has its turn. Closed loop, 128-word prompts, 64 new tokens, streaming.
Ratios are over the engine that was best in the same round.

A control stands beside them: a second process of the best engine, with the same options. What it does
over the first one is what two equal processes differ by here, and no choice can be told from it.

With an interpreter that has vLLM in THRIFTY_VLLM_PYTHON, vLLM is one more engine, and a candidate for
`auto`: it makes no 8-bit weights of a checkpoint, so that it serves 16 bits, and `auto` chooses the
form of the weights too.
"""

from __future__ import annotations

import math
import os
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
from engines import source_folder
from gateway_tokens import measure

WITH_VLLM = bool(os.environ.get("THRIFTY_VLLM_PYTHON"))
ENGINES = ("openvino", "llamacpp", *(["vllm"] if WITH_VLLM else []))
CONTROL = "control"
LEVELS = (1, 8, 32)
DEFAULT_LEVELS = (1, 8)
LEVEL_SECONDS = {1: 8.0, 8: 12.0, 32: 30.0}
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
BAR, DEFAULT_BAR = 0.97, 0.95


def start(name: str, levels: int | None = None, **engine: Any) -> ThriftyService:
    """A service; with `levels`, for that load."""
    (source,) = source_folder().glob("*.gguf")
    spec: dict[str, Any] = {
        "model": str(source), "name": "smol", "gateway": {"port": free_port()}, "engine": engine,
        "load": {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS},
    }  # fmt: skip
    if engine["kind"] == "vllm":
        spec["compress"] = "none"
    elif engine["kind"] != "auto" or not WITH_VLLM:
        spec["compress"] = "int8"
    if levels is not None:
        spec["load"]["streams"] = levels
    return ThriftyService(name, spec, fresh=True)


def read_choice(service: ThriftyService) -> str:
    """The engine that serves."""
    return str(service.status["deployments"][0]["versions"][0]["engine"])


def mean(found: dict[int, float], over: tuple[int, ...]) -> float:
    """The geometric mean over loads."""
    return math.exp(sum(math.log(found[n]) for n in over) / len(over))


def try_levels(name: str, service: ThriftyService, levels: tuple[int, ...]) -> dict[int, float]:
    """Tokens a second at each load."""
    service.wake()
    try:
        found = {
            n: measure(service.url, "smol", None, n, LEVEL_SECONDS[n])["tokens_per_s"]
            for n in levels
        }
    finally:
        service.sleep()
    say(f"{name}: {', '.join(f'{speed:.0f}' for speed in found.values())}")
    return found


def compare(
    results: dict[str, list[dict[int, float]]], best: str
) -> tuple[dict[int, dict[str, float]], list[dict[str, Any]]]:
    """The second process of the best engine over the first, at each load."""
    ratios, figures = {}, []
    for level in LEVELS:
        pairs = zip(results[CONTROL], results[best], strict=True)
        found = [second[level] / first[level] for second, first in pairs]
        ratios[level] = spread(found)
        figures.append(
            figure(f"tokens/s of a second process of {best} over the first, {level} streams", found,
                   "none: what equal processes differ by", True)
        )  # fmt: skip
    return ratios, figures


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=5)
    services: dict[str, ThriftyService] = {}
    levels: dict[str, tuple[int, ...]] = {}
    chosen: dict[str, str] = {}
    try:
        for level in (*LEVELS, None):
            name = f"auto for {level} streams" if level else "auto, no load stated"
            services[name] = start(name, level, kind="auto")
            levels[name] = (level,) if level else DEFAULT_LEVELS
            chosen[name] = read_choice(services[name])
            say(f"{name}: {chosen[name]}")
            services[name].sleep()
        for kind in ENGINES:
            services[kind], levels[kind] = start(kind, kind=kind), LEVELS
            services[kind].sleep()
        first = {kind: try_levels(kind, services[kind], LEVELS) for kind in ENGINES}
        best = max(ENGINES, key=lambda kind: mean(first[kind], LEVELS))
        services[CONTROL], levels[CONTROL] = start(CONTROL, kind=best), LEVELS
        services[CONTROL].sleep()
        say(f"control: {best} once more")
        results = in_turns(
            options.rounds,
            {
                name: lambda name=name: try_levels(name, services[name], levels[name])
                for name in services
            },
        )
    finally:
        for service in services.values():
            service.stop()

    table: list[tuple[str, ...]] = [("served", *(f"{n} streams" for n in LEVELS))]
    for name, rounds in results.items():
        cells = [
            show_spread([one[n] for one in rounds], "{:.0f}") if n in levels[name] else ""
            for n in LEVELS
        ]
        engine = chosen.get(name) or (best if name == CONTROL else None)
        table.append((f"{name} ({engine})" if engine else name, *cells))
    control, figures = compare(results, best)
    ratios = {}
    for name in chosen:
        over = levels[name]
        tops = [
            max(mean(results[kind][number], over) for kind in ENGINES)
            for number in range(options.rounds)
        ]
        found = [mean(one, over) / top for one, top in zip(results[name], tops, strict=True)]
        ratios[name] = spread(found)
        bar = DEFAULT_BAR if over == DEFAULT_LEVELS else BAR
        figures.append(
            figure(f"tokens/s of `engine: auto` over the best engine at 8 bits, {name}", found,
                   f">= {bar} x", median(found) >= bar)
        )  # fmt: skip
    finish(
        "engine_auto",
        {"rounds": options.rounds, "seconds": LEVEL_SECONDS, "chosen": chosen, "results": results,
         "ratios": ratios, "control": {"engine": best, "ratios": control}},
        table, figures, save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
