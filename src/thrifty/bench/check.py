"""The short speed test that `thrifty up` runs once a service is ready."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from thrifty.bench.client import MEASUREMENT_LINE, Target, send_request
from thrifty.bench.load import LoadPlan, run_load
from thrifty.bench.summary import summarize
from thrifty.bench.workload import Lengths, PlannedRequest, Workload
from thrifty.errors import BenchError
from thrifty.http.client import HttpClient
from thrifty.http.origin import parse_origin
from thrifty.openai.errors import read_code, read_message
from thrifty.openai.fields import ANSWERED
from thrifty.types import Family

QUESTION = "What is the capital of France?"
BEGINNING = "The capital of France is"
"""For models that have no chat template and only continue text."""
NO_TEMPLATE = "no_chat_template"
"""The code with which a request for a chat with such a model is refused."""
STREAMS = (1, 8)
SECONDS = 2.5
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 48
EMBEDDING_BATCH_SIZES = (1, 32)
"""Texts in a request for embeddings or for a ranking."""


@dataclass(frozen=True)
class ServiceSpeed:
    """The result of the speed test."""

    question: str
    answer: str
    ttft_s: float
    tokens_per_s: dict[int, float]
    """By the number of concurrent streams."""
    cost_per_million_tokens: float
    price_per_hour: float

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    prompt: str
    text: str
    chat: bool
    """Whether it has a chat template; without one, it has continued `prompt`."""


async def ask_question(url: str, model: str, key: str | None) -> Answer:
    """Ask one question; a model without a chat template continues a text instead. Raises
    `BenchError`.
    """
    messages = [{"role": "user", "content": QUESTION}]
    status, data = await _post(url, "chat/completions", model, key, messages=messages)
    chat = status != 400 or read_code(data) != NO_TEMPLATE
    if not chat:
        status, data = await _post(url, "completions", model, key, prompt=BEGINNING)
    if status != 200:
        raise BenchError(f"the question was answered with {status}: {read_message(data)}")
    choice = msgspec.json.decode(data)["choices"][0]
    text = choice["message"]["content"] if chat else choice["text"]
    return Answer(QUESTION if chat else BEGINNING, str(text or "").strip(), chat)


async def _post(
    url: str, path: str, model: str, key: str | None, **prompt: Any
) -> tuple[int, bytes]:
    """The status and body of a short greedy answer."""
    client = HttpClient()
    body = {"model": model, "temperature": 0, "max_tokens": 48, **prompt}
    headers = b"content-type: application/json\r\n" + MEASUREMENT_LINE
    if key:
        headers += f"authorization: Bearer {key}\r\n".encode()
    try:
        return await client.fetch(
            f"{url}/v1/{path}", method="POST", headers=headers,
            body=msgspec.json.encode(body), timeout_s=120.0,
        )  # fmt: skip
    finally:
        client.close()


async def measure_service(
    url: str,
    model: str,
    *,
    answer: str,
    price_per_hour: float,
    key: str | None = None,
    chat: bool = True,
    streams: Sequence[int] = STREAMS,
    on_step: Callable[[str], None] = lambda step: None,
) -> ServiceSpeed:
    """Time to first token, and tokens per second at each number of `streams`, through the gateway
    or from a replica itself. Models without a chat template can be measured with `chat` off.
    """
    target = Target(parse_origin(url), model, key, chat, is_measurement=True)
    workload = Workload(
        Lengths("fixed", PROMPT_TOKENS, 0), Lengths("fixed", OUTPUT_TOKENS, 0), seed=time.time_ns()
    )
    client = HttpClient()
    try:
        first = [
            await send_request(client, target, PlannedRequest(f"{QUESTION} ({attempt})", 4))
            for attempt in range(3)
        ]
    finally:
        client.close()
    good = sorted(sample.ttft_s for sample in first if sample.error is None)
    if not good:
        raise BenchError(f"the service does not answer: {first[0].error}")
    speeds: dict[int, float] = {}
    for count in streams:
        on_step(f"{count} stream{'s' if count > 1 else ''}")
        plan = LoadPlan(duration_s=SECONDS, warm_up_s=0.3, concurrency=count)
        summary = summarize(await run_load(target, workload, plan))
        speeds[count] = summary.output_tokens_per_s.value
    best = max(speeds.values())
    cost = price_per_hour / (best * 3600) * 1e6 if best else float("inf")
    question = QUESTION if chat else BEGINNING
    return ServiceSpeed(question, answer, good[len(good) // 2], speeds, cost, price_per_hour)


async def measure_texts(
    url: str,
    model: str,
    family: Family,
    *,
    words: int = PROMPT_TOKENS,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict[int, float]:
    """Measure how many texts per second, of `words` words each, an encoder embeds or a reranker
    ranks, by the number of texts in a request.

    Sends one request at a time. Raises `BenchError`.
    """
    requests = Workload(
        Lengths("fixed", words, 0), Lengths("fixed", 1, 0), seed=time.time_ns()
    ).requests()
    client = HttpClient()
    speeds: dict[int, float] = {}
    try:
        for batch_size in EMBEDDING_BATCH_SIZES:
            on_step(f"{batch_size} text{'s' if batch_size > 1 else ''}")
            done, started_s = 0, time.perf_counter()
            while (took_s := time.perf_counter() - started_s) < SECONDS:
                texts = [request.prompt for request in itertools.islice(requests, batch_size)]
                body: dict[str, Any] = {"model": model, "input": texts}
                if family is Family.RERANKER:
                    body = {"model": model, "query": QUESTION, "documents": texts}
                (endpoint,) = ANSWERED[family]
                status, data = await client.fetch(
                    f"{url}{endpoint.value}", method="POST",
                    headers=b"content-type: application/json\r\n" + MEASUREMENT_LINE,
                    body=msgspec.json.encode(body), timeout_s=120.0,
                )  # fmt: skip
                if status != 200:
                    raise BenchError(f"{endpoint.value} answered {status}: {read_message(data)}")
                done += batch_size
            speeds[batch_size] = done / took_s
    finally:
        client.close()
    return speeds
