"""Tokens per second with prompt look-up over without, where answers copy their prompts and elsewhere.

    python benchmarks/speculation.py

SmolLM2-135M with 8-bit weights, on each engine. The load with copying is edits: a paragraph of this
project's documentation, to be written out again with its spelling corrected; the other one is prompts
of random words. Services `off` and `prompt_lookup` on the first; on the second `auto` (decided for the
first), which has to leave look-ups by itself: it is measured once it had time to. All are loaded at
once and asleep (SIGSTOP) while another has its turn. Closed loop, 1 and 4 streams, streaming, greedy.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from common import (
    ROOT,
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
from thrifty.bench.client import Target
from thrifty.bench.load import LoadPlan, run_load
from thrifty.bench.summary import summarize
from thrifty.bench.workload import PlannedRequest, Workload
from thrifty.http.origin import parse_origin

ENGINES = ("openvino", "llamacpp")
STREAMS = (1, 4)
SECONDS = {1: 12.0, 4: 16.0}
BARS = {1: 1.5, 4: 1.2}
LEAST_OTHER = 0.98
SHORTEST, LONGEST = 300, 900
"""Characters of a paragraph."""
ASK = "Write out this text again, with its spelling corrected:\n\n"


@dataclass(frozen=True)
class Edits(Workload):
    """Paragraphs that are to be written out again."""

    def requests(self, level: str = "") -> Iterator[PlannedRequest]:
        texts = [
            " ".join(paragraph.split())
            for page in sorted((ROOT / "docs").glob("*.md"))
            for paragraph in page.read_text().split("\n\n")
            if not paragraph.startswith(("|", "#", " ", "-", "`", "<", "```"))
        ]
        texts = [text for text in texts if SHORTEST <= len(text) <= LONGEST]
        rng = random.Random(f"{self.seed}/{level}")
        while True:
            text = rng.choice(texts)
            # A token is about four characters; the answer ends within the copy.
            yield PlannedRequest(ASK + text, len(text) // 5)


def measure_edits(url: str, streams: int, seconds: float) -> float:
    """Tokens per second at one level of load."""
    plan = LoadPlan(seconds, 3.0, concurrency=streams)
    target = Target(parse_origin(url), "smol", None)
    found = summarize(asyncio.run(run_load(target, Edits(seed=time.time_ns()), plan)))
    if found.errors:
        raise SystemExit(f"{url}: {found.error_samples}")
    return found.output_tokens_per_s.value


def start(name: str, engine: str, speculation: str) -> ThriftyService:
    (source,) = source_folder().glob("*.gguf")
    spec: dict[str, Any] = {
        "model": str(source), "name": "smol", "compress": "int8", "gateway": {"port": free_port()},
        "engine": {"kind": engine, "speculation": speculation},
        "load": {"streams": max(STREAMS), "prompt_tokens": 160, "output_tokens": 96, "copying": 1},
    }  # fmt: skip
    return ThriftyService(name, spec)


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=5)
    services: dict[str, ThriftyService] = {}
    try:
        for engine in ENGINES:
            for way in ("none", "prompt_lookup", "auto"):
                name = f"{engine} {way}"
                services[name] = start(name, engine, way)
                if way == "auto":
                    # Time to notice that nothing is copied.
                    measure(services[name].url, "smol", None, max(STREAMS), 30.0)
                services[name].sleep()

        def turn(name: str):  # type: ignore[no-untyped-def]
            def run() -> dict[str, float]:
                service, found = services[name], {}
                service.wake()
                try:
                    for n in STREAMS:
                        if not name.endswith("auto"):
                            found[f"edits {n}"] = measure_edits(service.url, n, SECONDS[n])
                        if not name.endswith("prompt_lookup"):
                            plain = measure(service.url, "smol", None, n, SECONDS[n])
                            found[f"random {n}"] = plain["tokens_per_s"]
                finally:
                    service.sleep()
                say(f"{name}: {found}")
                return found

            return run

        results = in_turns(options.rounds, {name: turn(name) for name in services})
    finally:
        for service in services.values():
            service.stop()
    columns = [f"{load} {n}" for load in ("edits", "random") for n in STREAMS]
    table: list[tuple[str, ...]] = [("served", *(f"{one} streams" for one in columns))]
    for name, rounds in results.items():
        cells = [
            show_spread([one[column] for one in rounds], "{:.0f}") if column in rounds[0] else ""
            for column in columns
        ]
        table.append((name, *cells))
    figures, ratios = [], {}
    for engine in ENGINES:
        for n in STREAMS:
            for way, column, bar in (
                ("prompt_lookup", f"edits {n}", BARS[n]), ("auto", f"random {n}", LEAST_OTHER),
            ):  # fmt: skip
                pairs = zip(results[f"{engine} {way}"], results[f"{engine} none"], strict=True)
                found = [one[column] / off[column] for one, off in pairs]
                what = "edits" if way == "prompt_lookup" else "where nothing is copied"
                label = f"{engine}: tokens/s of {way} over none, {what}, {n} streams"
                ratios[label] = spread(found)
                figures.append(figure(label, found, f">= {bar} x", median(found) >= bar))
    finish(
        "speculation", {"rounds": options.rounds, "results": results, "ratios": ratios}, table,
        figures, save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
