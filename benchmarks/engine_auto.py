"""Tokens per second of what `engine: auto` takes, beside each engine by itself, at the stated load.

    python benchmarks/engine_auto.py

SmolLM2-135M with 8-bit weights everywhere. One service for each engine by name, and one with `engine:
auto` for each load: 1, 8 and 32 streams, and none stated. Each service of `auto` makes its own choice
in a fresh home, alone on the machine, as a user's first start does. Then all are loaded at once and
asleep (SIGSTOP) while another has its turn. Closed loop, 128-word prompts, 64 new tokens, streaming.
Ratios are over the engine that was best in the same round.
"""

from __future__ import annotations

import math
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

ENGINES = ("openvino", "llamacpp")
LEVELS = (1, 8, 32)
DEFAULT_LEVELS = (1, 8)
LEVEL_SECONDS = {1: 8.0, 8: 12.0, 32: 30.0}
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
BAR, DEFAULT_BAR = 0.97, 0.95


def start(name: str, levels: int | None = None, **engine: Any) -> ThriftyService:
    """A service; with `levels`, for that load."""
    (source,) = source_folder().glob("*.gguf")
    spec: dict[str, Any] = {
        "model": str(source), "name": "smol", "compress": "int8", "gateway": {"port": free_port()},
        "engine": engine, "load": {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS},
    }  # fmt: skip
    if levels is not None:
        spec["load"]["streams"] = levels
    return ThriftyService(name, spec, fresh=True)


def read_choice(service: ThriftyService) -> str:
    """The engine that serves."""
    return str(service.status["deployments"][0]["versions"][0]["engine"])


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

        def turn(name: str):  # type: ignore[no-untyped-def]
            def run() -> dict[int, float]:
                service = services[name]
                service.wake()
                try:
                    found = {
                        n: measure(service.url, "smol", None, n, LEVEL_SECONDS[n])["tokens_per_s"]
                        for n in levels[name]
                    }
                finally:
                    service.sleep()
                say(f"{name}: {', '.join(f'{speed:.0f}' for speed in found.values())}")
                return found

            return run

        results = in_turns(options.rounds, {name: turn(name) for name in services})
    finally:
        for service in services.values():
            service.stop()

    def mean(found: dict[int, float], over: tuple[int, ...]) -> float:
        return math.exp(sum(math.log(found[n]) for n in over) / len(over))

    table: list[tuple[str, ...]] = [("served", *(f"{n} streams" for n in LEVELS))]
    for name, rounds in results.items():
        cells = [
            show_spread([one[n] for one in rounds], "{:.0f}") if n in levels[name] else ""
            for n in LEVELS
        ]
        table.append((f"{name} ({chosen[name]})" if name in chosen else name, *cells))
    figures, ratios = [], {}
    for name in chosen:
        over = levels[name]
        best = [
            max(mean(results[kind][number], over) for kind in ENGINES)
            for number in range(options.rounds)
        ]
        found = [mean(one, over) / top for one, top in zip(results[name], best, strict=True)]
        ratios[name] = spread(found)
        bar = DEFAULT_BAR if over == DEFAULT_LEVELS else BAR
        figures.append(
            figure(f"tokens/s of `engine: auto` over the best engine at 8 bits, {name}", found,
                   f">= {bar} x", median(found) >= bar)
        )  # fmt: skip
    finish(
        "engine_auto",
        {"rounds": options.rounds, "seconds": LEVEL_SECONDS, "chosen": chosen, "results": results,
         "ratios": ratios},
        table, figures, save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
