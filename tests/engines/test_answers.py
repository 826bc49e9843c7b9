"""Answers in the OpenAI shape: whole and streamed, and that both say the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from itertools import cycle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parts import Reply, ask, running_server
from thrifty.engines.echo.backend import EchoBackend, make_tokenizer
from thrifty.engines.openvino.adapter import HONOURS
from thrifty.engines.server.answers import ChunkWriter, build_answer, encode_usage_chunk
from thrifty.engines.server.app import ModelServer
from thrifty.engines.server.backend import (
    Failure,
    ModelFacts,
    OnFailure,
    OnOutput,
    Output,
    Sampling,
)
from thrifty.engines.server.choice import Choice
from thrifty.engines.server.request import GenerationRequest, parse_chat, parse_completion
from thrifty.http.client import HttpClient
from thrifty.openai.stream_answers import assemble_answer
from thrifty.types import Family

TOKENIZER = make_tokenizer()
END = 256
FACTS = ModelFacts(Family.DECODER, 8192, (END,))
HI = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
BARE_CALL = '{"name": "weather", "arguments": {"city": "Rom"}}'


def chat(**fields: Any) -> GenerationRequest:
    return parse_chat({"messages": HI, "model": "m", **fields}, TOKENIZER, FACTS)


def completion(prompt: Any = "hi", **fields: Any) -> GenerationRequest:
    return parse_completion({"prompt": prompt, "model": "m", **fields}, TOKENIZER, FACTS)


def cut(text: str, sizes: list[int], finish: str = "stop") -> list[Output]:
    """`text` as outputs of these sizes, in turn, with an end-of-sequence token after it."""
    ids = [*text.encode(), END] if finish == "stop" else list(text.encode())
    outputs = []
    for size in cycle(sizes):
        taken, ids = ids[:size], ids[size:]
        probabilities = [-i / 100 for i in taken]
        outputs.append(Output(1, taken, probabilities, "" if ids else finish))
        if not ids:
            return outputs
    raise AssertionError


def run(request: GenerationRequest, outputs: list[Output]) -> tuple[list[Any], dict[str, Any]]:
    """The events of a stream, and the whole answer, for one choice with these outputs."""
    choice = Choice(0, request, TOKENIZER)
    writer = ChunkWriter(request, choice, "id-1", 17)
    stream = b""
    for output in outputs:
        if choice.finish_reason is None:
            stream += writer.write(*choice.feed(output))
    return parse(stream), json.loads(build_answer(request, [choice], "chatcmpl-1"))


def parse(stream: bytes) -> list[Any]:
    events = stream.split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [json.loads(event[6:]) for event in events]


def join_chat(events: list[Any]) -> dict[str, Any]:
    """What a client makes of a stream: the choice of a whole answer."""
    content, calls, details = "", [], []
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons[:-1] == [None] * (len(events) - 1)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for event in events:
        (choice,) = event["choices"]
        assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
        content += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls", []):
            if call.pop("index") == len(calls):
                assert call.pop("id")
                calls.append(call)
            else:
                assert set(call) == {"function"}
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        details += (choice["logprobs"] or {"content": []})["content"]
    return {"content": content, "calls": calls, "logprobs": details, "reason": reasons[-1]}


def view_chat(answer: dict[str, Any]) -> dict[str, Any]:
    """The same of a whole answer."""
    (choice,) = answer["choices"]
    calls = choice["message"].get("tool_calls", [])
    for call in calls:
        call.pop("id")
    return {
        "content": choice["message"]["content"] or "",
        "calls": calls,
        "logprobs": (choice["logprobs"] or {"content": []})["content"],
        "reason": choice["finish_reason"],
    }


# the shapes


def test_whole_chat_answer() -> None:
    _, answer = run(chat(), cut("Ja.", [2]))
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Ja.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_whole_completion() -> None:
    _, answer = run(completion(), cut("Ja.", [2], "length"))
    assert answer.pop("id") == "chatcmpl-1"
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": "Ja.", "logprobs": None, "finish_reason": "length"}
    ]


def test_chunks_of_a_chat() -> None:
    events, _ = run(chat(), cut("Ja.", [2]))
    head = {"id": "id-1", "object": "chat.completion.chunk", "created": 17, "model": "m"}
    parts = [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Ja"}, None),
        ({"content": "."}, None),
        ({}, "stop"),
    ]
    assert events == [
        {
            **head,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
        }
        for delta, reason in parts
    ]


def test_chunks_of_a_completion() -> None:
    events, _ = run(completion(), cut("Ja.", [2], "length"))
    head = {"id": "id-1", "object": "text_completion", "created": 17, "model": "m"}
    assert events == [
        {**head, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]}
        for text, reason in [("Ja", None), (".", "length")]
    ]


def test_names_and_texts_are_escaped() -> None:
    events, answer = run(chat(model='a"\n\\ü'), cut('"\n\\\x00 ', [1]))
    assert {event["model"] for event in events} == {answer["model"]} == {'a"\n\\ü'}
    assert join_chat(events)["content"] == '"\n\\\x00 '


def test_tokens_without_text_cost_no_chunk() -> None:
    events, _ = run(chat(), cut("🦙", [1]))
    assert [e["choices"][0]["delta"].get("content") for e in events] == ["", "🦙", None]
    events, _ = run(completion(), cut("🦙", [1]))
    assert [e["choices"][0]["text"] for e in events] == ["🦙", ""]


def test_answer_of_no_text_is_an_empty_string() -> None:
    events, answer = run(chat(), [Output(1, [END], None, "stop")])
    assert join_chat(events)["content"] == ""
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["usage"]["completion_tokens"] == 1


# streamed and whole say the same

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
TOOLISH = st.lists(
    st.sampled_from([CALL, CALL, CALL, "Hi", "\n", BARE_CALL, "<tool_call>", "</tool_call>", "<tool", "Hi", " ", "\n", "[",
                     "]", ",", "<", "é", '<tool_call>{"name": "no"}</tool_call>']),
    max_size=5,
).map("".join)  # fmt: skip
SIZES = st.lists(st.sampled_from([1, 2, 3, 5, 40]), min_size=1, max_size=3)


@given(text=TEXT, sizes=SIZES, stop=st.sampled_from([[], ["a"], ["ab", "é"]]))
def test_streamed_chats_are_whole_chats(text: str, sizes: list[int], stop: list[str]) -> None:
    events, answer = run(chat(stop=stop, logprobs=True), cut(text, sizes))
    assert join_chat(events) == view_chat(answer)


@given(text=TEXT, sizes=SIZES, stop=st.sampled_from([[], ["a"], ["ab", "é"]]))
def test_streamed_completions_are_whole_completions(
    text: str, sizes: list[int], stop: list[str]
) -> None:
    request = completion(stop=stop, logprobs=0)
    events, answer = run(request, cut(text, sizes, "length"))
    (whole,) = answer["choices"]
    chunks = [event["choices"][0] for event in events]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for key in ("tokens", "token_logprobs", "text_offset"):
        assert [x for chunk in chunks for x in chunk["logprobs"][key]] == whole["logprobs"][key]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]


@given(
    text=TOOLISH, sizes=SIZES, choice=st.sampled_from(["auto", "required"]), parallel=st.booleans()
)
def test_streamed_calls_are_whole_calls(
    text: str, sizes: list[int], choice: str, parallel: bool
) -> None:
    request = chat(tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel, logprobs=True)
    events, answer = run(request, cut(text, sizes))
    assembled = assemble_answer(events)
    assert assembled is not None
    assert join_chat(events) == view_chat(answer)
    # What the gateway makes of the stream is the whole answer, but for the ids of its calls.
    for one in (messages := [json.loads(assembled), answer]):
        for call in one["choices"][0]["message"].get("tool_calls", ()):
            call["id"] = ""
    first, second = (one["choices"][0]["message"] for one in messages)
    assert first == second


# log-probabilities


def test_logprobs_of_a_chat() -> None:
    events, answer = run(chat(logprobs=True), cut("ab", [1]))
    expected = [
        {"token": "a", "logprob": -0.97, "bytes": [97], "top_logprobs": []},
        {"token": "b", "logprob": -0.98, "bytes": [98], "top_logprobs": []},
    ]
    assert answer["choices"][0]["logprobs"] == {"content": expected, "refusal": None}
    assert [e["choices"][0]["logprobs"] for e in events] == [
        None,
        {"content": expected[:1], "refusal": None},
        {"content": expected[1:], "refusal": None},
        None,
    ]


def test_logprobs_of_a_completion_say_where_each_token_begins() -> None:
    events, answer = run(completion(logprobs=0), cut("abc", [2], "length"))
    expected = {"tokens": ["a", "b", "c"], "token_logprobs": [-0.97, -0.98, -0.99],
                "top_logprobs": None, "text_offset": [0, 1, 2]}  # fmt: skip
    assert answer["choices"][0]["logprobs"] == expected
    assert [e["choices"][0]["logprobs"]["text_offset"] for e in events] == [[0, 1], [2]]


# calls


def test_call_is_streamed_after_the_text_before_it() -> None:
    text = f"Let me see. {CALL}"
    events, answer = run(chat(tools=[TOOL], logprobs=True), cut(text, [4]))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Köln"}'}
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    first, *others = [at for at, delta in enumerate(deltas) if "tool_calls" in delta]
    called = deltas[first]["tool_calls"][0]
    assert called["index"] == 0
    assert called["type"] == "function"
    assert re.fullmatch("[A-Za-z0-9]{9}", called["id"])
    assert called["function"] == {"name": "weather", "arguments": ""}
    # Its arguments come as they are generated, with the log-probabilities of their tokens.
    assert len(others) > 4
    assert all(set(deltas[at]["tool_calls"][0]) == {"index", "function"} for at in others)
    assert events[first]["choices"][0]["logprobs"]["content"]
    assert deltas[-1] == {}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_plain_text_goes_out_at_once_although_there_are_tools() -> None:
    request = chat(tools=[TOOL])
    choice = Choice(0, request, TOKENIZER)
    writer = ChunkWriter(request, choice, "id", 1)
    text = ""
    for byte in b"It is <b>sunny</b>":
        for event in parse(writer.write(*choice.feed(Output(1, [byte])))):
            text += event["choices"][0]["delta"]["content"]
        # Held back is what may begin a tag, with the space before it.
        assert "It is <b>sunny</b>"[: choice.tokens].removeprefix(text) in ("", " ", "<", " <")


def test_call_alone_has_no_content() -> None:
    _, answer = run(chat(tools=[TOOL], tool_choice="required"), cut(BARE_CALL, [7]))
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert len(message["tool_calls"]) == 1


def test_call_that_the_limit_cuts_stays_text() -> None:
    request = chat(tools=[TOOL])
    events, answer = run(request, cut(CALL[:30], [5], "length"))
    assert view_chat(answer) == {
        "content": CALL[:30], "calls": [], "logprobs": [], "reason": "length",
    }  # fmt: skip
    assert join_chat(events)["content"] == CALL[:30]


def test_text_that_looks_like_a_call_is_text_for_those_without_tools() -> None:
    _, answer = run(chat(), cut(CALL, [9]))
    assert view_chat(answer)["content"] == CALL
    _, answer = run(chat(tools=[TOOL], tool_choice="none"), cut(CALL, [9]))
    assert view_chat(answer)["content"] == CALL


# usage


def test_prompts_count_once_however_many_choices_they_have() -> None:
    request = completion(["hello", "you"], n=2)
    choices = [Choice(index, request, TOKENIZER) for index in range(4)]
    for choice, cached in zip(choices, (4, 0, 2, 2), strict=True):
        choice.feed(Output(1, [97] * (choice.index + 1), None, "length", cached))
    expected = {
        "prompt_tokens": 8,
        "completion_tokens": 10,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 6},
    }
    assert json.loads(build_answer(request, choices, "chatcmpl-1"))["usage"] == expected
    (event,) = parse(encode_usage_chunk(request, choices, "id-1", 17))
    assert event == {
        "id": "id-1", "object": "text_completion", "created": 17, "model": "m", "choices": [],
        "usage": expected,
    }  # fmt: skip


# over HTTP, with the echo backend behind a server that honours everything


class Failing(EchoBackend):
    """Answers as the echo does, and fails at the first token whose byte is `!`."""

    kind = "engine"

    def submit(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_output: OnOutput,
        on_failure: OnFailure,
        priority: int = 0,
    ) -> int:
        def pass_on(output: Output) -> None:
            if ord("!") in output.token_ids:
                self.cancel(output.job)
                on_failure(Failure(output.job, self.kind, "it broke"))
            else:
                on_output(output)

        return super().submit(prompt, sampling, pass_on, on_failure, priority)


class Odd(EchoBackend):
    """Leaves out the log-probability of a token whose byte is `!`."""

    def submit(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_output: OnOutput,
        on_failure: OnFailure,
        priority: int = 0,
    ) -> int:
        def pass_on(output: Output) -> None:
            output.logprobs = [] if ord("!") in output.token_ids else [-1.0] * len(output.token_ids)
            on_output(output)

        return super().submit(prompt, sampling, pass_on, on_failure, priority)


class Seeds(EchoBackend):
    """Answers with its seed."""

    def _make_reply(self, prompt: list[int], sampling: Sampling) -> list[int]:
        return list(str(sampling.seed).encode())


@contextlib.asynccontextmanager
async def serving(backend: EchoBackend) -> AsyncIterator[tuple[str, HttpClient]]:
    server = ModelServer("m", backend, TOKENIZER, engine="echo", honours=HONOURS)
    await server.start()
    client = HttpClient()
    async with running_server(server.handle) as (url, _):
        try:
            yield url, client
        finally:
            client.close()
            await backend.stop()


async def post(
    where: tuple[str, HttpClient], path: str = "/v1/chat/completions", **body: Any
) -> Reply:
    url, client = where
    if path == "/v1/chat/completions":
        body.setdefault("messages", HI)
    return await ask(client, url, msgspec.json.encode(body), path)


async def test_stream_ends_with_its_mark() -> None:
    async with serving(EchoBackend(reply="Grüße", tpot_s=0.001)) as where:
        reply = await post(where, stream=True)
    assert reply.headers[b"content-type"].startswith(b"text/event-stream")
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert reply.body.count(b"[DONE]") == 1
    assert join_chat(reply.events)["content"] == "Grüße"
    assert len(reply.events) == 2 + len("Grüße")
    assert len({event["id"] for event in reply.events}) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_that_cannot_be_written_fails_alone(*, stream: bool) -> None:
    backend = Odd(tpot_s=0.001)
    async with serving(backend) as where:
        said = ["good" * 9, "ab!c" * 100]
        good, odd = await asyncio.gather(
            *(
                post(where, "/v1/completions", prompt=text, max_tokens=400, stream=stream)
                for text in said
            )
        )
        assert good.status == 200
        assert "error" not in good.body.decode()
        error = (odd.events[-1] if stream else odd.json())["error"]
        assert error["code"] == "engine_error"
        assert odd.status == (200 if stream else 500)
        assert backend.load().running == 0
        assert (await post(where, "/v1/completions", prompt="again", max_tokens=5)).status == 200


async def test_call_with_half_of_a_surrogate_pair_is_told() -> None:
    reply = r'{"arguments": {"city": "a\ud83d"}, "name": "weather"}'
    async with serving(EchoBackend(reply=reply)) as where:
        whole = (await post(where, tools=[TOOL])).json()["choices"][0]["message"]["tool_calls"]
        events = (await post(where, tools=[TOOL], stream=True)).events
    assert json.loads(whole[0]["function"]["arguments"]) == {"city": "a\ufffd"}
    (call,) = join_chat(events)["calls"]
    assert "a\ufffd" in str(call)


async def test_usage_is_streamed_to_those_who_ask() -> None:
    async with serving(EchoBackend(reply="abc")) as where:
        plain = await post(where, stream=True)
        counted = await post(where, stream=True, stream_options={"include_usage": True})
        whole = await post(where)
    assert all("usage" not in event for event in plain.events)
    *events, last = counted.events
    assert all(event["choices"] for event in events)
    assert last["choices"] == []
    assert last["usage"] == whole.json()["usage"]
    assert last["usage"]["completion_tokens"] == 3


async def test_choices_have_seeds_of_their_own() -> None:
    async with serving(Seeds()) as where:
        reply = await post(where, n=3, seed=2**31 - 2)
    texts = [choice["message"]["content"] for choice in reply.json()["choices"]]
    assert texts == [str(2**31 - 2), str(2**31 - 1), "0"]
    assert [choice["index"] for choice in reply.json()["choices"]] == [0, 1, 2]


async def test_choices_of_several_prompts_are_in_order() -> None:
    async with serving(EchoBackend()) as where:
        body = {"prompt": ["one", "two"], "n": 2, "echo": True}
        whole = await post(where, "/v1/completions", **body)
        streamed = await post(where, "/v1/completions", stream=True, **body)
    texts = [choice["text"] for choice in whole.json()["choices"]]
    assert texts == ["oneone", "oneone", "twotwo", "twotwo"]
    assert whole.json()["usage"]["prompt_tokens"] == 6
    assert whole.json()["usage"]["completion_tokens"] == 12
    joined = [""] * 4
    for event in streamed.events:
        joined[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert joined == texts


async def test_stream_goes_on_until_its_last_choice_ends() -> None:
    """A stop string ends each choice by itself; the backend, which goes on, is told."""
    backend = EchoBackend(reply="ab;cdefgh" * 100, tpot_s=0.001)
    async with serving(backend) as where:
        reply = await post(where, stream=True, n=3, stop=";")
        assert backend.load().running == 0
    ends = [e["choices"][0] for e in reply.events if e["choices"][0]["finish_reason"]]
    assert sorted(choice["index"] for choice in ends) == [0, 1, 2]
    assert {choice["finish_reason"] for choice in ends} == {"stop"}
    for index in range(3):
        events = [e for e in reply.events if e["choices"][0]["index"] == index]
        assert join_chat(events)["content"] == "ab"


async def test_client_that_goes_takes_all_its_jobs_with_it() -> None:
    backend = EchoBackend(reply="x" * 10_000, tpot_s=0.01, slots=2)
    async with serving(backend) as where:
        asking = asyncio.ensure_future(post(where, n=4))
        while backend.load().waiting != 2:
            await asyncio.sleep(0.005)
        asking.cancel()
        went_s = time.monotonic()
        while backend.load().running or backend.load().waiting:
            await asyncio.sleep(0.005)
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        load = backend.load()
        assert (load.running, load.waiting) == (0, 0)
        # To their end, the jobs would have run for minutes.
        assert time.monotonic() - went_s < 10


@pytest.mark.parametrize(
    ("kind", "status", "code", "kind_of_error"),
    [
        ("grammar", 400, "invalid_schema", "invalid_request_error"),
        ("memory", 503, "kv_cache_full", "overloaded_error"),
        ("engine", 500, "engine_error", "server_error"),
    ],
)
async def test_failure_before_the_first_byte_is_a_status(
    kind: str, status: int, code: str, kind_of_error: str
) -> None:
    backend = Failing(reply="!")
    backend.kind = kind
    async with serving(backend) as where:
        for stream in (False, True):
            reply = await post(where, stream=stream)
            assert (reply.status, reply.error["code"]) == (status, code)
            assert reply.error["type"] == kind_of_error
            assert "it broke" in reply.error["message"]
    assert (b"retry-after" in reply.headers) is (status == 503)


async def test_failure_in_a_stream_ends_it_with_an_error_event() -> None:
    async with serving(Failing(reply="ab!", tpot_s=0.001)) as where:
        reply = await post(where, stream=True)
    assert reply.status == 200
    assert b"[DONE]" not in reply.body
    assert reply.events[-1]["error"]["code"] == "engine_error"
    assert b"".join(reply.body.split(b"data: ")[:-1]).count(b'"content":"') == 3


async def test_failure_of_one_choice_ends_the_others() -> None:
    backend = Failing(reply="ab!" + "x" * 10_000, tpot_s=0.001)
    async with serving(backend) as where:
        reply = await post(where, n=3)
        assert reply.status == 500
        while backend.load().running:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
         "response_format"),
        ({"tools": [TOOL]}, "tools"),
    ],
)  # fmt: skip
async def test_schema_that_cannot_be_enforced_names_the_field_it_came_in(
    fields: dict[str, Any], param: str
) -> None:
    backend = Failing(reply="!")
    backend.kind = "grammar"
    async with serving(backend) as where:
        reply = await post(where, **fields)
    assert (reply.status, reply.error["param"]) == (400, param)
