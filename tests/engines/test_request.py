"""From a request's JSON to prompts and sampling: every limit, and every message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.server.backend import ModelFacts, Sampling
from thrifty.engines.server.request import (
    COMPLETION_DEFAULT_TOKENS,
    MAX_CHOICES,
    GenerationRequest,
    parse_chat,
    parse_completion,
    split_inputs,
)
from thrifty.openai.errors import WireError
from thrifty.openai.fields import Endpoint
from thrifty.openai.stream_options import StreamOptions
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family

CONTEXT = 64
FACTS = ModelFacts(Family.DECODER, CONTEXT, (256,))
TOKENIZER = make_tokenizer()
KNOWS_TOOLS = TextTokenizer(
    make_tokenizer().tokenizer,
    "{{ tools | tojson }}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments.items() | list }})"
    "{% endfor %};{% endfor %}",
)
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "clock"}}


def chat(tokenizer: TextTokenizer = TOKENIZER, **fields: Any) -> GenerationRequest:
    return parse_chat({"messages": [USER], **fields}, tokenizer, FACTS)


def completion(prompt: Any = "hi", **fields: Any) -> GenerationRequest:
    return parse_completion({"prompt": prompt, **fields}, TOKENIZER, FACTS)


def prompt_of(*messages: Any, tokenizer: TextTokenizer = TOKENIZER, **fields: Any) -> str:
    """The prompt's text for these messages."""
    (prompt,) = chat(tokenizer, messages=list(messages), **fields).prompts
    return bytes(prompt).decode()


def refuse(message: str, param: str | None, code: str, call: Any, **fields: Any) -> None:
    with pytest.raises(WireError, match=message) as refusal:
        call(**fields)
    assert (refusal.value.status, refusal.value.param, refusal.value.code) == (400, param, code)


# sampling


def test_left_out_settings_are_those_of_openai() -> None:
    request = chat()
    assert request.sampling == Sampling(
        max_tokens=CONTEXT - len("hi\n"), seed=request.sampling.seed
    )
    assert (request.n, request.candidates, request.stream, request.stops) == (1, 1, False, ())
    assert (request.stream_options, request.logprobs) == (StreamOptions(), False)
    assert (request.endpoint, request.model) == (Endpoint.CHAT, "")
    assert request.eos_token_ids == (256,)
    assert request.prompt_tokens == 3
    request = completion()
    assert request.sampling.max_tokens == COMPLETION_DEFAULT_TOKENS == 16
    assert request.endpoint is Endpoint.COMPLETIONS


def test_every_setting_is_handed_on() -> None:
    request = chat(
        model="m", max_tokens=9, min_tokens=2, temperature=0.5, top_p=0.9, top_k=40, min_p=0.1,
        presence_penalty=0.2, frequency_penalty=-0.3, repetition_penalty=1.2, seed=7,
        ignore_eos=True, stop_token_ids=[5], logprobs=True, top_logprobs=4, n=3, stop=["a", "b"],
        stream=True, stream_options={"include_usage": True}, logit_bias={"5": -100, "07": 0.5},
    )  # fmt: skip
    assert request.sampling == Sampling(
        max_tokens=9, min_tokens=2, temperature=0.5, top_p=0.9, top_k=40, min_p=0.1,
        presence_penalty=0.2, frequency_penalty=-0.3, repetition_penalty=1.2, seed=7,
        seeded=True, ignore_eos=True, stop_token_ids=(5,), logprobs=True, top_logprobs=4,
        logit_bias=((5, -100.0), (7, 0.5)),
    )  # fmt: skip
    assert (request.model, request.n, request.stops) == ("m", 3, ("a", "b"))
    assert (request.stream, request.stream_options) == (True, StreamOptions(usage=True))
    assert (request.logprobs, request.candidates) == (True, 3)


def test_settings_that_are_null_count_as_left_out() -> None:
    names = ("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
             "presence_penalty", "frequency_penalty", "repetition_penalty", "stop_token_ids",
             "logprobs", "top_logprobs", "n", "stream", "stream_options", "ignore_eos", "tools", "tool_choice",
             "response_format", "max_completion_tokens")  # fmt: skip
    request = chat(**dict.fromkeys(names))
    assert request.sampling == Sampling(max_tokens=61, seed=request.sampling.seed)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"temperature": 0}, "temperature", 0.0),
        ({"top_k": -1}, "top_k", 0),
        ({"top_p": 0}, "top_p", 0.0),
        ({"max_completion_tokens": 5, "max_tokens": 9}, "max_tokens", 5),
        ({"seed": -1}, "seed", 2**31 - 1),
        ({"seed": 2**40 + 3}, "seed", 3),
    ],
)
def test_odd_values_are_brought_into_range(fields: Any, name: str, value: Any) -> None:
    assert getattr(chat(**fields).sampling, name) == value


def test_requests_without_a_seed_get_different_ones() -> None:
    assert len({chat().sampling.seed for _ in range(20)}) > 15


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("x", ("x",)), (["x", "yy"], ("x", "yy")), ("", ()), ([], ()), (None, ())],
)
def test_stop_strings_come_alone_or_in_an_array(stop: Any, expected: Any) -> None:
    assert chat(stop=stop).stops == completion(stop=stop).stops == expected


# lengths


def test_overlong_prompt_names_both_numbers() -> None:
    refuse(
        r"maximum context length is 64 tokens. However, you requested 102 tokens. Please reduce the "
        r"length of the messages\.",
        "messages", "context_length_exceeded", chat,
        messages=[{"role": "user", "content": "x" * 100}],
    )  # fmt: skip


def test_prompt_and_answer_that_do_not_fit_together_name_all_numbers() -> None:
    refuse(
        r"is 64 tokens. However, you requested 65 tokens \(3 in the messages, 62 in the completion\). "
        r"Please reduce the length of the messages or completion\.",
        "messages", "context_length_exceeded", chat, max_tokens=62,
    )  # fmt: skip
    refuse(
        r"you requested 66 tokens \(50 in the prompt, 16 in the completion\)",
        "prompt", "context_length_exceeded", completion, prompt="x" * 50, max_tokens=16,
    )  # fmt: skip


def test_prompt_that_just_fits_is_taken() -> None:
    assert chat(max_tokens=61).sampling.max_tokens == 61
    longest = chat(messages=[{"role": "user", "content": "x" * 62}])
    assert longest.sampling.max_tokens == 1
    refuse(
        "requested 65 tokens", "messages", "context_length_exceeded", chat,
        messages=[{"role": "user", "content": "x" * 63}],
    )  # fmt: skip
    assert completion("x" * 60, max_tokens=4).sampling.max_tokens == 4


def test_longest_of_several_prompts_counts() -> None:
    refuse(
        r"\(60 in the prompt, 16 in the completion\)", "prompt", "context_length_exceeded",
        completion, prompt=["a", "x" * 60, "b"], max_tokens=16,
    )  # fmt: skip


def test_limit_that_nobody_asked_for_is_never_too_much() -> None:
    assert completion("x" * 50).sampling.max_tokens == 14
    assert completion(["a", "x" * 63]).sampling.max_tokens == 1
    refuse(
        r"you requested 65 tokens. Please reduce the length of the prompt\.", "prompt",
        "context_length_exceeded", completion, prompt="x" * 64,
    )  # fmt: skip


def test_number_of_answers_to_one_request_is_bounded() -> None:
    assert len(completion(["a"] * (MAX_CHOICES // 8), n=8).prompts) == MAX_CHOICES // 8
    refuse(
        f"at most {MAX_CHOICES} answers may come at once", "prompt", "invalid_value", completion,
        prompt=["a"] * (MAX_CHOICES // 8 + 1), n=8,
    )  # fmt: skip


# truncation


@pytest.mark.parametrize(("keep", "kept"), [(3, "llo"), (5, "hello"), (60, "hello")])
def test_end_of_a_prompt_is_kept(keep: int, kept: str) -> None:
    for prompt in ("hello", list(b"hello")):
        request = completion(prompt, truncate_prompt_tokens=keep)
        assert bytes(request.prompts[0]).decode() == kept
    request = chat(messages=[{"role": "user", "content": "hello"}], truncate_prompt_tokens=keep)
    assert bytes(request.prompts[0]).decode() == "hello\n"[-keep:]


def test_as_much_of_a_prompt_is_kept_as_leaves_room() -> None:
    for prompt in ("ab" * 1000, list(b"ab" * 1000)):
        request = completion(prompt, truncate_prompt_tokens=-1, max_tokens=10)
        assert bytes(request.prompts[0]).decode() == "ab" * ((CONTEXT - 10) // 2)
    request = chat(
        messages=[{"role": "user", "content": "ab" * 1000}], truncate_prompt_tokens=-1
    )  # fmt: skip
    assert (len(request.prompts[0]), request.sampling.max_tokens) == (CONTEXT - 1, 1)


def test_truncation_beyond_the_context_is_refused() -> None:
    for call in (chat, completion):
        refuse(
            "'truncate_prompt_tokens' is 65, more than this model's maximum context length of 64",
            "truncate_prompt_tokens", "invalid_value", call, truncate_prompt_tokens=65,
        )  # fmt: skip


def test_minimum_above_the_maximum_is_refused() -> None:
    refuse(
        "'min_tokens' is 9, more than the 5 tokens that may be generated", "min_tokens",
        "invalid_value", chat, min_tokens=9, max_tokens=5,
    )  # fmt: skip
    refuse("more than the 61", "min_tokens", "invalid_value", chat, min_tokens=62)
    assert chat(min_tokens=5, max_tokens=5).sampling.min_tokens == 5


# prompts


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", [b"hi"]),
        (["a", "bc"], [b"a", b"bc"]),
        ([104, 105], [b"hi"]),
        ([[104], [105, 106]], [b"h", b"ij"]),
    ],
)
def test_prompts_are_text_or_tokens(prompt: Any, expected: list[bytes]) -> None:
    assert [bytes(p) for p in completion(prompt).prompts] == expected


def test_empty_prompt_begins_with_the_end_of_a_text() -> None:
    assert completion("").prompts == completion([]).prompts == [[256]]


def test_empty_prompt_without_such_a_token_is_refused() -> None:
    facts = ModelFacts(Family.DECODER, CONTEXT)
    with pytest.raises(WireError, match="'prompt' must not be empty"):
        parse_completion({"prompt": ""}, TOKENIZER, facts)


@pytest.mark.parametrize("token", [257, 10**6, 2**31, 2**63, 2**64, 10**30])
@pytest.mark.parametrize("field", ["prompt", "prompts", "stop_token_ids"])
def test_tokens_that_do_not_exist_are_refused(token: int, field: str) -> None:
    """An engine that is handed one reads beyond its embedding table."""
    values: dict[str, Any] = {"prompt": [65, token]}
    if field == "prompts":
        values = {"prompt": [[65], [token, 66]]}
    elif field == "stop_token_ids":
        values = {"prompt": "hi", field: [token]}
        refuse("holds the token", field, "invalid_value", chat, stop_token_ids=[token])
    param = "stop_token_ids" if field == "stop_token_ids" else "prompt"
    refuse(
        rf"'{param}' holds the token {token}, and this model's tokens end at 256", param,
        "invalid_value", completion, **values,
    )  # fmt: skip


def test_largest_token_is_taken() -> None:
    assert completion([65, 256], stop_token_ids=[256]).prompts == [[65, 256]]


def test_echo_gives_the_prompts_back() -> None:
    assert completion(["a", "b"], echo=True).echo_texts == ["a", "b"]
    assert completion([104, 105], echo=True).echo_texts == ["hi"]
    assert completion("a", echo=False).echo_texts == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (False, 0, False)),
        ({"logprobs": 0}, (True, 0, False)),
        ({"logprobs": 5}, (True, 5, False)),
        ({"echo": True}, (False, 0, False)),
        ({"echo": True, "logprobs": 0}, (True, 0, True)),
        ({"echo": True, "logprobs": 1, "max_tokens": 0}, (True, 1, True)),
    ],
)
def test_log_probabilities_of_a_completion(fields: Any, expected: Any) -> None:
    sampling = completion(**fields).sampling
    assert (sampling.logprobs, sampling.top_logprobs, sampling.prompt_logprobs) == expected


def test_likeliest_tokens_of_a_chat_go_with_its_log_probabilities() -> None:
    assert chat(logprobs=True, top_logprobs=20).sampling.top_logprobs == 20
    for fields in ({"top_logprobs": 2}, {"top_logprobs": 2, "logprobs": False}):
        refuse("'logprobs': true", "top_logprobs", "invalid_value", chat, **fields)
    assert not chat(top_logprobs=0).sampling.logprobs


def test_only_an_echo_may_be_without_an_answer() -> None:
    assert completion("ab", echo=True, max_tokens=0).sampling.max_tokens == 0
    refuse("'echo': true", "max_tokens", "invalid_value", completion, max_tokens=0)
    refuse("more than the 0", "min_tokens", "invalid_value", completion, max_tokens=0, echo=True,
           min_tokens=1)  # fmt: skip


def test_more_candidates_than_answers_are_judged_by_their_log_probabilities() -> None:
    request = completion(n=2, best_of=5)
    assert (request.n, request.candidates, request.logprobs) == (2, 5, False)
    assert request.sampling.logprobs
    assert not completion(n=2, best_of=2).sampling.logprobs
    refuse("less than the 3", "best_of", "invalid_value", completion, n=3, best_of=2)
    refuse("cannot be streamed", "best_of", "invalid_value", completion, best_of=2, stream=True)
    assert completion(best_of=1, stream=True).candidates == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2]], [[1], [2]]),
        ([], [""]),
    ],
)
def test_inputs_are_one_or_several(value: Any, expected: Any) -> None:
    assert split_inputs(value) == expected


def test_usage_of_a_stream_needs_a_stream() -> None:
    refuse(
        "'stream_options' may only be given with 'stream': true", "stream_options", "invalid_value",
        chat, stream_options={"include_usage": True},
    )  # fmt: skip
    assert chat(stream=True, stream_options={}).stream_options == StreamOptions()


# messages


def test_messages_become_the_templates_text() -> None:
    assert prompt_of({"role": "system", "content": "a"}, USER) == "a\nhi\n"
    assert prompt_of({"role": "user", "content": [{"type": "text", "text": "a"},
                                                  {"type": "text", "text": "b"}]}) == "ab\n"  # fmt: skip
    assert prompt_of({"role": "user", "content": ""}) == "\n"


def test_developer_is_the_system() -> None:
    assert "system" in prompt_of({"role": "developer", "content": "a"}, tokenizer=KNOWS_TOOLS)


@pytest.mark.parametrize(
    ("message", "text", "code"),
    [
        ("hi", r"'messages\[0\]' must be an object", "invalid_value"),
        ({"content": "a"}, r"'messages\[0\].role' must be one of assistant, .*not None", "invalid_value"),
        ({"role": "robot", "content": "a"}, "not 'robot'", "invalid_value"),
        ({"role": ["user"], "content": "a"}, r"not \['user'\]", "invalid_value"),
        ({"role": "user"}, r"'messages\[0\].content' is missing", "invalid_value"),
        ({"role": "user", "content": None}, "content' is null", "invalid_value"),
        ({"role": "user", "content": 7}, "must be a string or an array of parts", "invalid_value"),
        ({"role": "user", "content": {"text": "a"}}, "a string or an array", "invalid_value"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            r"'messages\[0\].content\[0\]' is of type 'image_url'; this model takes text alone",
            "unsupported_content",
        ),
        ({"role": "user", "content": [7]}, "is of type None", "unsupported_content"),
        ({"role": "user", "content": [{"type": "text"}]}, "is of type 'text'", "unsupported_content"),
        (
            {"role": "assistant", "tool_calls": {"a": 1}},
            r"'messages\[0\].tool_calls' must be an array",
            "invalid_value",
        ),
        ({"role": "assistant", "tool_calls": 7}, "tool_calls' must be an array", "invalid_value"),
        (
            {"role": "assistant", "tool_calls": [{"id": "1"}]},
            r"'messages\[0\].tool_calls\[0\]' must hold a function with a name",
            "invalid_value",
        ),
        ({"role": "assistant", "refusal": 7}, r"refusal' must be a string, not 7", "invalid_value"),
        ({"role": "assistant", "audio": {"id": "a"}}, "text alone", "unsupported_content"),
    ],
    ids=range(16),
)  # fmt: skip
def test_faulty_messages_are_named(message: Any, text: str, code: str) -> None:
    refuse(text, "messages", code, chat, messages=[message])


def test_template_that_makes_nothing_is_told() -> None:
    silent = TextTokenizer(make_tokenizer().tokenizer, "{% if 0 %}x{% endif %}")
    with pytest.raises(WireError, match="makes nothing of these messages"):
        chat(silent)


def test_template_gets_what_the_request_adds() -> None:
    tokenizer = TextTokenizer(
        make_tokenizer().tokenizer, "{{ thinking }}{{ add_generation_prompt }}"
    )
    assert prompt_of(USER, tokenizer=tokenizer, chat_template_kwargs={"thinking": 1}) == "1True"
    text = prompt_of(USER, tokenizer=tokenizer, add_generation_prompt=None)
    assert text == "True"
    assert prompt_of(USER, tokenizer=tokenizer, add_generation_prompt=False) == "False"


# tools and formats


def test_template_that_knows_tools_gets_them() -> None:
    facts = ModelFacts(Family.DECODER, 10_000)
    request = parse_chat({"messages": [USER], "tools": [TOOL]}, KNOWS_TOOLS, facts)
    assert bytes(request.prompts[0]).decode() == json.dumps([TOOL]) + "user:hi;"


def test_template_that_knows_tools_gets_arguments_as_objects() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": "deep"}'}}
    text = prompt_of({"role": "assistant", "tool_calls": [call]}, tokenizer=KNOWS_TOOLS)
    assert text == "nullassistant:f([('a', 'deep')]);"


def test_other_templates_are_told_of_tools_in_words() -> None:
    facts = ModelFacts(Family.DECODER, 10_000)
    request = parse_chat({"messages": [USER], "tools": [TOOL]}, TOKENIZER, facts)
    text = bytes(request.prompts[0]).decode()
    assert text.startswith("You may call functions")
    assert json.dumps(TOOL) in text
    assert text.endswith("</tool_call>\nhi\n")
    assert request.tools.active
    assert request.sampling.grammar is not None
    assert 'TagDispatch(("<tool_call>", ' in request.sampling.grammar.text


def test_tools_that_are_not_to_be_used_change_nothing() -> None:
    request = chat(tools=[TOOL], tool_choice="none")
    assert request.prompts == chat().prompts
    assert request.sampling.grammar is None


@pytest.mark.parametrize("value", [None, {"type": "text"}])
def test_text_is_free(value: Any) -> None:
    assert chat(response_format=value).sampling.grammar is None


def test_response_formats_bind_the_answer() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    holder = {"name": "a", "description": None, "strict": True, "schema": schema}
    bound = chat(response_format={"type": "json_schema", "json_schema": holder})
    whole = chat(response_format={"type": "json_object", "schema": None, "json_schema": None})
    assert bound.sampling.grammar is not None
    assert bound.sampling.grammar.text.startswith("root ::= ")
    for kind in ("json_schema", "json_object"):
        for where in ({"schema": schema}, {"json_schema": {"schema": schema}}):
            beside = chat(response_format={"type": kind, **where})
            assert beside.sampling.grammar == bound.sampling.grammar
    assert whole.sampling.grammar not in (None, bound.sampling.grammar)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "'response_format.type' must be 'text', 'json_object' or 'json_schema', not None"),
        ({"type": "xml"}, "not 'xml'"),
        ({"type": ["text"]}, r"not \['text'\]"),
        ({"type": "json_schema"}, "'response_format.json_schema.schema' must be a JSON schema"),
        (
            {"type": "json_schema", "json_schema": "x"},
            "json_schema' must be an object with a 'schema'",
        ),
        ({"type": "json_schema", "json_schema": ["x"]}, "must be an object with a 'schema'"),
        ({"type": "json_schema", "schema": "x"}, "'response_format.schema' must be a JSON schema"),
        ({"type": "json_schema", "json_schema": {"schema": "x"}}, "must be a JSON schema"),
        ({"type": "json_schema", "json_schema": {"schema": True}}, "must be a JSON schema"),
        ({"type": "json_object", "schema": "x"}, "'response_format.schema' must be a JSON schema"),
        ({"type": "text", "schema": {}}, "type 'text' has no schema; use the type 'json_schema'"),
        ({"type": "text", "json_schema": {"schema": {}}}, "type 'text' has no schema"),
        ({"type": "json_object", "schema": {}, "json_schema": {"schema": {}}}, "holds two schemas"),
        (
            {"type": "json_object", "pattern": "x"},
            "unknown key 'pattern'; it may hold description, ",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "grammar": 1}},
            "unknown key 'grammar'",
        ),
    ],
)
def test_faulty_response_formats_are_refused(value: Any, message: str) -> None:
    refuse(message, "response_format", "invalid_value", chat, response_format=value)


@pytest.mark.parametrize("field", ["min_tokens", "ignore_eos"])
def test_bound_answer_cannot_be_made_to_go_on(field: str) -> None:
    bound = {
        "response_format": {"type": "json_object"},
        field: 5 if field == "min_tokens" else True,
    }
    refuse(f"'{field}' cannot be joined with an answer", field, "invalid_value", chat, **bound)
    tokenizer = TextTokenizer(make_tokenizer().tokenizer, "x{# tools #}")
    assert chat(tokenizer, tools=[TOOL], **{field: bound[field]}).tools.active
