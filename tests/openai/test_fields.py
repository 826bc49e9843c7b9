"""Every field of every endpoint: its valid and invalid values, and the error messages."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.openai.errors import WireError
from thrifty.openai.fields import ALWAYS_HONOURED, FIELDS, REQUIRED, WISHES, Endpoint, check_fields

ALL = [(endpoint, name) for endpoint, fields in FIELDS.items() for name in fields]
EVERYTHING = frozenset(name for _, name in ALL)

SAMPLES: dict[str, list[Any]] = {
    "boolean": [True, False],
    "whole": [1, 2],
    "number": [0.5],
    "string": ["x", ""],
    "array": [[], ["x"], [{}]],
    "object": [{}, {"a": 1}],
}
"""Values by JSON type."""

MESSAGES = [{"role": "user", "content": "hi"}]
RIGHT: dict[str, list[Any]] = {
    "temperature": [0, 1, 0.7, 2],
    "top_p": [0, 0.5, 1],
    "top_k": [-1, 0, 40],
    "min_p": [0, 0.05, 1],
    "presence_penalty": [-2, 0, 1.5, 2],
    "frequency_penalty": [-2, 0, 1.5, 2],
    "repetition_penalty": [0.01, 1, 1.1, 10],
    "seed": [0, -5, 2**63 - 1],
    "max_tokens": [1, 2**31 - 1],
    "max_completion_tokens": [1, 2**31 - 1],
    "min_tokens": [0, 5],
    "priority": [0, 1, 1000],
    "cache_salt": ["x", "y" * 1024],
    "ignore_eos": [True, False],
    "stop": ["x", "", [], ["a", "b"], ["x"] * 16],
    "stop_token_ids": [[], [0, 5]],
    "n": [1, 128],
    "best_of": [1, 20],
    "logit_bias": [{}, {"50256": -100}, {"0": 0.5, "7": 100}],
    "user": ["ann", ""],
    "stream": [True, False],
    "stream_options": [
        {},
        {"include_usage": True},
        {"include_obfuscation": False},
        {"continuous_usage_stats": True, "include_usage": True},
    ],
    "model": ["m"],
    "messages": [MESSAGES],
    "top_logprobs": [0, 20],
    "response_format": [{"type": "text"}, {"type": "json_object"}],
    "tools": [[], [{"type": "function"}]],
    "tool_choice": ["none", "auto", "required", {"type": "function"}],
    "parallel_tool_calls": [True, False],
    "chat_template_kwargs": [{}, {"enable_thinking": False}],
    "functions": [[{"name": "f"}]],
    "function_call": ["auto", {"name": "f"}],
    "audio": [{"voice": "x"}],
    "metadata": [{}, {"a": "b"}],
    "moderation": [{"model": "m"}],
    "modalities": [["text"], ["text", "audio"]],
    "prediction": [{"type": "content"}],
    "prompt_cache_key": ["k"],
    "prompt_cache_options": [{}, {"mode": "implicit"}, {"mode": "explicit"}],
    "prompt_cache_retention": ["in_memory", "24h"],
    "reasoning_effort": ["low"],
    "safety_identifier": ["s"],
    "service_tier": ["auto", "default", "flex"],
    "store": [True, False],
    "verbosity": ["low", "medium"],
    "web_search_options": [{}],
    "echo": [True, False],
    "suffix": ["", "x"],
    "input": ["x", ["x", "y"], [1, 2], [[1], [2, 3]]],
    "encoding_format": ["float", "base64"],
    "dimensions": [1, 256],
    "query": ["x", "What?"],
    "documents": [["x"], ["x", ""], [{"text": "x"}, "y"]],
    "top_n": [1, 3],
    "return_documents": [True, False],
    "add_special_tokens": [True, False],
    "add_generation_prompt": [True, False],
    "continue_final_message": [True, False],
    "separate_reasoning": [True, False],
    "truncate_prompt_tokens": [-1, 1, 4096],
    "return_token_strs": [True, False],
}
RIGHT_HERE: dict[tuple[Endpoint, str], list[Any]] = {
    (Endpoint.CHAT, "logprobs"): [True, False],
    (Endpoint.COMPLETIONS, "logprobs"): [0, 5],
    (Endpoint.COMPLETIONS, "max_tokens"): [0, 1, 2**31 - 1],
    (Endpoint.COMPLETIONS, "prompt"): RIGHT["input"],
    (Endpoint.TOKENIZE, "prompt"): ["x", ""],
}
"""Fields with different valid values on different endpoints."""

WRONG_IN_RANGE: dict[str, list[Any]] = {
    "temperature": [-0.1, 2.1, float("nan"), float("inf")],
    "top_p": [-0.1, 1.1],
    "top_k": [-2, 2**31],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, 10.5],
    "seed": [2**63],
    "max_tokens": [-1, 2**31],
    "max_completion_tokens": [0],
    "min_tokens": [-1],
    "priority": [-1, 1001],
    "cache_salt": ["", "y" * 1025],
    "stop": [["x"] * 17, [""], [1]],
    "stop_token_ids": [[-1], [1.0], [True], ["x"], [1] * 1025],
    "n": [0, 129],
    "best_of": [0, 21],
    "top_logprobs": [-1, 21],
    "stream_options": [{"include_usage": 1}, {"include": True}, {"include_obfuscation": "no"}],
    "logit_bias": [
        {"5": 101},
        {"5": -100.5},
        {"5": True},
        {"5": "1"},
        {"x": 1},
        {"-1": 1},
        {"9" * 11: 1},
    ],
    "messages": [[]],
    "tool_choice": ["any", ""],
    "input": [[], [[]], ["x", 1], [1, "x"], [[1], []], [[1], "x"], [-1], [True], [[1], [True]]],
    "encoding_format": ["int8", ""],
    "dimensions": [0],
    "query": [""],
    "documents": [
        [],
        [1],
        ["x", None],
        [{}],
        [{"text": 1}],
        [{"text": "x", "title": "y"}],
        [["x"]],
    ],
    "top_n": [0, -1, 1.5],
    "truncate_prompt_tokens": [-2, 0, 2**31],
}


def right_values(endpoint: Endpoint, name: str) -> list[Any]:
    return RIGHT_HERE.get((endpoint, name)) or RIGHT[name]


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = {int: "whole", float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]


def body_with(endpoint: Endpoint, name: str, value: Any) -> dict[str, Any]:
    required = {
        Endpoint.CHAT: {"messages": MESSAGES},
        Endpoint.COMPLETIONS: {"prompt": "x"},
        Endpoint.EMBEDDINGS: {"input": "x"},
        Endpoint.RERANK: {"query": "x", "documents": ["x"]},
        Endpoint.TOKENIZE: {},
    }[endpoint]
    return {**required, name: value}


def refusal(body: dict[str, Any], endpoint: Endpoint, honoured: Any = EVERYTHING) -> WireError:
    with pytest.raises(WireError) as caught:
        check_fields(body, endpoint, honoured, "echo")
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


def test_the_number_of_fields_is_plausible() -> None:
    assert len(ALL) > 60
    assert {endpoint: len(fields) > 4 for endpoint, fields in FIELDS.items()} == dict.fromkeys(
        Endpoint, True
    )
    assert set(RIGHT) | {name for _, name in RIGHT_HERE} == EVERYTHING, "no case is left over"


@pytest.mark.parametrize(("endpoint", "name"), ALL)
def test_every_field_accepts_valid_values(endpoint: Endpoint, name: str) -> None:
    for value in right_values(endpoint, name):
        # Decoded from JSON, where 1.0 and 1 are different.
        body = json.loads(json.dumps(body_with(endpoint, name, value)))
        check_fields(body, endpoint, EVERYTHING)
        check_fields(body, endpoint, None)


@pytest.mark.parametrize(("endpoint", "name"), ALL)
def test_every_field_refuses_other_types_and_names_itself(endpoint: Endpoint, name: str) -> None:
    kinds = {kind_of(value) for value in right_values(endpoint, name)}
    if "number" in kinds:
        kinds.add("whole")
    others = [value for kind, values in SAMPLES.items() if kind not in kinds for value in values]
    assert len(others) >= 4
    assert "boolean" in kinds or True in others, "booleans are not numbers"
    rule = FIELDS[endpoint][name].rule
    for value in others:
        for honoured in (EVERYTHING, frozenset[str](), None):
            error = refusal(body_with(endpoint, name, value), endpoint, honoured)
            assert (error.param, error.code) == (name, "invalid_value")
            assert error.message == f"'{name}' must be {rule}, not {value!r}."


@pytest.mark.parametrize(
    ("endpoint", "name"), [case for case in ALL if case[1] in WRONG_IN_RANGE]
)  # fmt: skip
def test_values_out_of_range_are_refused(endpoint: Endpoint, name: str) -> None:
    for value in WRONG_IN_RANGE[name]:
        error = refusal(body_with(endpoint, name, value), endpoint)
        assert (error.param, error.code) == (name, "invalid_value")


def test_a_rule_describes_valid_values() -> None:
    message = refusal({"messages": MESSAGES, "temperature": 3}, Endpoint.CHAT).message
    assert message == "'temperature' must be a number between 0 and 2, not 3."
    message = refusal({"messages": MESSAGES, "n": 0}, Endpoint.CHAT).message
    assert message == "'n' must be a whole number between 1 and 128, not 0."
    message = refusal({"messages": MESSAGES, "max_tokens": 2**31}, Endpoint.CHAT).message
    assert message == (
        "'max_tokens' must be a whole number between 1 and 2147483647, not 2147483648."
    )
    message = refusal({"input": "x", "encoding_format": "int"}, Endpoint.EMBEDDINGS).message
    assert message == "'encoding_format' must be one of 'float', 'base64', not 'int'."


def test_a_long_value_is_shown_in_part() -> None:
    message = refusal({"messages": "x" * 10_000}, Endpoint.CHAT).message
    assert len(message) < 120
    assert message.endswith("xxx....")


# None, neutral values, and unsupported fields


@pytest.mark.parametrize(("endpoint", "name"), ALL)
def test_null_means_not_given(endpoint: Endpoint, name: str) -> None:
    if name in REQUIRED[endpoint]:
        error = refusal(body_with(endpoint, name, None), endpoint)
        assert (error.param, error.code) == (name, "missing_required_parameter")
        return
    for honoured in (EVERYTHING, frozenset[str](), None):
        check_fields(body_with(endpoint, name, None), endpoint, honoured)


@pytest.mark.parametrize(("endpoint", "name"), ALL)
def test_unsupported_fields_are_refused_unless_neutral(endpoint: Endpoint, name: str) -> None:
    field = FIELDS[endpoint][name]
    for value in field.neutral:
        assert field.accepts(value), "a neutral value is a right one"
        check_fields(body_with(endpoint, name, value), endpoint, frozenset())
    asking = [value for value in right_values(endpoint, name) if value not in field.neutral]
    assert asking, "some value asks for something"
    for value in asking:
        body = body_with(endpoint, name, value)
        if name in ALWAYS_HONOURED | WISHES or name in REQUIRED[endpoint]:
            check_fields(body, endpoint, frozenset())
            continue
        error = refusal(body, endpoint, EVERYTHING - {name})
        assert (error.param, error.code) == (name, "unsupported_parameter")
        assert error.message.startswith(
            f"The engine behind this model (echo) cannot honour '{name}'; "
        )
        check_fields(body, endpoint, frozenset({name}))
        check_fields(body, endpoint, None)  # an external server may know it


def test_an_error_names_the_replacement() -> None:
    body = {"messages": MESSAGES, "functions": [{"name": "f"}]}
    assert refusal(body, Endpoint.CHAT, frozenset()).message.endswith("; use 'tools' instead.")
    body = {"messages": MESSAGES, "function_call": "auto"}
    assert refusal(body, Endpoint.CHAT, frozenset()).message.endswith(
        "; use 'tool_choice' instead."
    )
    body = {"messages": MESSAGES, "logit_bias": {"1": 2}}
    message = refusal(body, Endpoint.CHAT, frozenset()).message
    assert message.endswith(
        "; remove it, or use an engine that can: 'llamacpp', 'vllm', or 'remote'."
    )
    body = {"messages": MESSAGES, "web_search_options": {}}
    message = refusal(body, Endpoint.CHAT, frozenset()).message
    assert message.endswith("; remove it, or use an engine that can.")


# Required and unknown fields


@pytest.mark.parametrize("endpoint", Endpoint)
def test_the_required_field_is_checked_first(endpoint: Endpoint) -> None:
    if not REQUIRED[endpoint]:
        check_fields({}, endpoint, EVERYTHING)
        return
    required = REQUIRED[endpoint][0]
    error = refusal({"temprature": 1}, endpoint)
    assert (error.param, error.code) == (required, "missing_required_parameter")
    assert error.message == f"Missing required parameter: '{required}'."


@pytest.mark.parametrize(("endpoint", "name"), ALL)
def test_a_misspelt_field_is_refused_with_a_suggestion(endpoint: Endpoint, name: str) -> None:
    if len(name) < 4:
        return
    slip = name + name[-1]
    error = refusal(body_with(endpoint, slip, 1), endpoint)
    assert (error.param, error.code) == (slip, "unknown_parameter")
    assert error.message == f"Unknown parameter: '{slip}'. Did you mean '{name}'?"
    check_fields(body_with(endpoint, slip, 1), endpoint, None)


def test_an_unknown_field_gets_no_suggestion() -> None:
    error = refusal({"messages": MESSAGES, "zzz": 1}, Endpoint.CHAT)
    assert error.message == "Unknown parameter: 'zzz'."


@pytest.mark.parametrize(
    ("endpoint", "name", "hint"),
    [
        (Endpoint.CHAT, "guided_json", "Use 'response_format' of /v1/chat/completions, with a JSON schema."),
        (Endpoint.COMPLETIONS, "grammar", "Use 'response_format' of /v1/chat/completions, "),
        (Endpoint.CHAT, "n_predict", "Use 'max_tokens'."),
        (Endpoint.COMPLETIONS, "repeat_penalty", "Use 'repetition_penalty'."),
        (Endpoint.CHAT, "enable_thinking", "in 'chat_template_kwargs' of /v1/chat/completions."),
        (Endpoint.COMPLETIONS, "response_format", "It is a parameter of /v1/chat/completions."),
        (Endpoint.CHAT, "echo", "It is a parameter of /v1/completions."),
        (Endpoint.EMBEDDINGS, "seed", "It is a parameter of /v1/chat/completions and /v1/completions."),
    ],
)  # fmt: skip
def test_a_field_of_other_servers_is_refused_with_what_to_use(
    endpoint: Endpoint, name: str, hint: str
) -> None:
    error = refusal(body_with(endpoint, name, 1), endpoint)
    assert (error.param, error.code) == (name, "unknown_parameter")
    assert error.message.startswith(f"Unknown parameter: '{name}'. ")
    assert hint in error.message


def test_a_huge_field_name_is_refused_quickly() -> None:
    name = "temperature" * 2_000_000
    began_s = time.perf_counter()
    error = refusal({"messages": MESSAGES, name: 1}, Endpoint.CHAT)
    assert time.perf_counter() - began_s < 1
    assert error.param == f"{name[:64]}..."
    assert error.message == f"Unknown parameter: '{name[:64]}...'."


def test_fields_of_one_endpoint_are_unknown_to_another() -> None:
    for endpoint, name in (
        (Endpoint.COMPLETIONS, "messages"),
        (Endpoint.CHAT, "prompt"),
        (Endpoint.EMBEDDINGS, "temperature"),
        (Endpoint.TOKENIZE, "input"),
    ):
        assert refusal(body_with(endpoint, name, "x"), endpoint).code == "unknown_parameter"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.sampled_from(Endpoint),
    st.dictionaries(st.sampled_from(sorted(EVERYTHING)) | st.text(max_size=8), JSON, max_size=5),
    st.sampled_from([EVERYTHING, frozenset[str](), None]),
)
def test_any_object_passes_or_is_refused_by_name(
    endpoint: Endpoint, body: dict[str, Any], honoured: Any
) -> None:
    try:
        check_fields(body, endpoint, honoured)
        return
    except WireError as caught:
        error = caught
    assert error.status == 400
    assert error.param is not None
    assert f"'{error.param}'" in error.message
    assert len(error.message) < 400
