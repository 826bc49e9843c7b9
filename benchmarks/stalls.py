"""How long a stream stands still while others send what takes long to read.

    python benchmarks/stalls.py

One client streams from the default model, through the gateway, without an end. In turns, nobody else
asks; four clients send schemas that are expensive to compile, each a new one; three clients send
prompts of 7 MB, to be answered and to be tokenized. The figure is the longest time between two
events of the stream.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

from common import ThriftyService, finish, free_port, in_turns, parse_arguments, show_spread, spread
from thrifty.http.client import Answer, HttpClient
from thrifty.http.origin import parse_origin

SECONDS = 30.0
WARM_UP_S = 2.0
PROMPT_BYTES = 7_000_000
BAR_S = 0.5
_JSON = b"content-type: application/json\r\n"


class Streaming:
    """A client that streams, and notes when events come."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens = 0

    def take(self, data: bytes) -> None:
        self.times.append(time.monotonic())
        self.tokens += data.count(b'"content":"')

    async def run(self, client: HttpClient, url: str, model: str) -> None:
        while True:
            body = {
                "model": model, "messages": [{"role": "user", "content": "Tell a long story."}],
                "max_tokens": 7000, "ignore_eos": True, "stream": True, "temperature": 1,
                "seed": time.time_ns() % 2**31,
            }  # fmt: skip
            answer = await post(client, url, "/v1/chat/completions", body)
            answer.attach(self.take)
            try:
                await answer.done
            except asyncio.CancelledError:
                answer.abort()
                raise


async def post(client: HttpClient, url: str, path: str, body: dict[str, Any]) -> Answer:
    return await client.open(
        parse_origin(url), "POST", path, headers=_JSON, body=json.dumps(body).encode()
    )


def expensive_schemas(number: int) -> dict[str, Any]:
    """A schema that nobody has sent before, of one of six kinds."""
    text = {"type": "string"}
    nested: dict[str, Any] = {"type": "null"}
    if number % 6 == 5:
        for depth in range(150):
            nested = {
                "type": "object",
                "properties": {f"{'x' * 200}{number}{depth}": nested, "y": text},
            }
    return [
        {"type": "object", "properties": {"a": {**text, "maxLength": 200 + number}}, "required": ["a"]},
        {"type": "object", "properties": {f"p{i}": {**text, "maxLength": 50_000 + 6 * number + i} for i in range(6)}},
        {"type": "object", "properties": {"a": {**text, "pattern": f"^([a-z ]+[A-Z]){{1,{40 + number}}}$"}}},
        {"enum": [f"value {i} of {number}" for i in range(3000)]},
        {"type": "object", "properties": {f"{kind}{number}": {**text, "format": kind} for kind in ("email", "uri", "hostname")}},
        nested,
    ][number % 6]  # fmt: skip


def send_schema(number: int, model: str) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {
        "model": model,
        "messages": [{"role": "user", "content": "Write."}],
        "max_tokens": 16,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": expensive_schemas(number)},
        },
    }


def send_prompt(number: int, model: str) -> tuple[str, dict[str, Any]]:
    text = f"{number} " + "lorem ipsum dolor " * (PROMPT_BYTES // 18)
    if number % 3 == 2:
        return "/tokenize", {"model": model, "prompt": text}
    return "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": text}]}


_numbers = itertools.count()


def measure(
    service: ThriftyService,
    model: str,
    seconds: float,
    clients: int,
    make: Callable[[int, str], tuple[str, dict[str, Any]]],
) -> dict[str, Any]:
    """One turn: the gaps of the stream, and what became of the others' requests."""

    async def run() -> dict[str, Any]:
        client = HttpClient()
        streaming = Streaming()
        statuses: Counter[str] = Counter()
        stream = asyncio.ensure_future(streaming.run(client, service.url, model))
        while not streaming.times:
            await asyncio.sleep(0.01)
        await asyncio.sleep(WARM_UP_S)
        began = time.monotonic()

        async def ask() -> None:
            while time.monotonic() - began < seconds:
                path, body = await asyncio.to_thread(make, next(_numbers), model)
                answer = await post(client, service.url, path, body)
                await answer.read()
                statuses[str(answer.status)] += 1

        others = [asyncio.ensure_future(ask()) for _ in range(clients)]
        await asyncio.sleep(seconds)
        ended = time.monotonic()
        stream.cancel()
        await asyncio.wait([stream, *others])
        client.close()
        times = [t for t in streaming.times if began <= t <= ended]
        gaps = sorted(b - a for a, b in itertools.pairwise([began, *times, ended]))
        return {
            "longest_s": gaps[-1],
            "p99_s": gaps[int(len(gaps) * 0.99)],
            "median_s": median(gaps),
            "answers": dict(statuses),
        }

    return asyncio.run(run())


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=3)
    seconds = max(options.seconds, SECONDS)
    service = ThriftyService("stalls", {"gateway": {"port": free_port()}})
    model = service.status["deployments"][0]["name"]
    try:
        results = in_turns(
            options.rounds,
            {
                "nothing": lambda: measure(service, model, seconds, 0, send_schema),
                "expensive schemas": lambda: measure(service, model, seconds, 4, send_schema),
                "prompts of 7 MB": lambda: measure(service, model, seconds, 3, send_prompt),
            },
        )
    finally:
        service.stop()
    rows, figures = [], []
    for name, turns in results.items():
        longest = [turn["longest_s"] for turn in turns]
        answers = sum((Counter(turn["answers"]) for turn in turns), Counter())
        rows.append((name, show_spread([t["median_s"] * 1e3 for t in turns], "{:.0f}"),
                     show_spread([t["p99_s"] * 1e3 for t in turns], "{:.0f}"),
                     show_spread([1e3 * gap for gap in longest], "{:.0f}"),
                     ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))))  # fmt: skip
        if name != "nothing":
            figures.append(
                {"figure": f"longest gap of another stream while others send {name}",
                 "measured": f"{show_spread(longest)} s", "bar": f"<= {BAR_S} s", "met": max(longest) <= BAR_S}
            )  # fmt: skip
    finish(
        "stalls",
        {"seconds": seconds, "results": results,
         "longest_s": {name: spread([t["longest_s"] for t in turns]) for name, turns in results.items()}},
        [("others send", "median gap, ms", "p99, ms", "longest, ms", "answers"), *rows],
        figures,
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
