"""The fields of OpenAI requests: their valid values, and whether an engine can honour them.

No field is accepted and ignored, but for a few wishes that OpenAI's own answers need not follow
either (`WISHES`). A field is refused with a 400 that names it if it is unknown, if
its value is not valid, or if the engine behind the model cannot honour it. An unsupported field
with its default value is accepted.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from thrifty.openai.errors import WireError, bad_request
from thrifty.openai.stream_options import NAMES, is_stream_options
from thrifty.types import Family
from thrifty.untrusted_text import sanitize_text


class Endpoint(StrEnum):
    """The endpoints that reach an engine, by path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RERANK = "/v1/rerank"
    TOKENIZE = "/tokenize"


STREAMED = (Endpoint.CHAT, Endpoint.COMPLETIONS)
"""The endpoints whose answers may be streamed."""
ANSWERED: dict[Family, tuple[Endpoint, ...]] = {
    Family.DECODER: (Endpoint.CHAT, Endpoint.COMPLETIONS),
    Family.ENCODER: (Endpoint.EMBEDDINGS,),
    Family.RERANKER: (Endpoint.RERANK,),
}
"""What models of each family answer, beside requests for tokens, which all do."""


@dataclass(frozen=True)
class Field:
    """One request field. `rule` completes the sentence "it must be ..."."""

    rule: str
    accepts: Callable[[Any], bool]
    neutral: tuple[Any, ...] = ()
    """Values that have no effect, which every engine honours."""


_NUMBERS = (int, float)
"""The exact types of numbers in decoded JSON; a bool is none."""


def _number(low: float, high: float, *neutral: float) -> Field:
    def accepts(value: Any) -> bool:
        return type(value) in _NUMBERS and low <= value <= high

    return Field(f"a number between {low:g} and {high:g}", accepts, neutral)


def _integer(low: int, high: int, *neutral: int) -> Field:
    def accepts(value: Any) -> bool:
        return type(value) is int and low <= value <= high

    return Field(f"a whole number between {low} and {high}", accepts, neutral)


def _boolean(*neutral: bool) -> Field:
    return Field("true or false", lambda value: isinstance(value, bool), neutral)


def _string(*neutral: str) -> Field:
    return Field("a string", lambda value: isinstance(value, str), neutral)


def _choice(*choices: str, neutral: tuple[str, ...] = ()) -> Field:
    return Field(f"one of {', '.join(map(repr, choices))}", lambda value: value in choices, neutral)


def _object(*neutral: Any) -> Field:
    return Field("an object", lambda value: isinstance(value, dict), neutral)


def _array(*neutral: Any) -> Field:
    return Field("an array", lambda value: isinstance(value, list), neutral)


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _is_text_input(value: Any) -> bool:
    """Whether it is a string, token ids, or a non-empty batch of either."""
    if isinstance(value, str):
        return True
    if not isinstance(value, list) or not value:
        return False
    return (
        _is_token_ids(value)
        or all(isinstance(item, str) for item in value)
        or all(_is_token_ids(item) and item for item in value)
    )


def _is_documents(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_document, value))


def _is_document(value: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == {"text"} and isinstance(value["text"], str)
    return isinstance(value, str)


def _is_stop(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(isinstance(item, str) and item for item in value)
    )


def _is_bias(value: Any) -> bool:
    """Whether it holds numbers from -100 to 100 by token ids, which are texts in JSON."""
    return isinstance(value, dict) and all(
        _TOKEN_ID.fullmatch(name)
        and isinstance(bias, int | float)
        and not isinstance(bias, bool)
        and -100 <= bias <= 100
        for name, bias in value.items()
    )


def _is_tags(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_TAGS
        and all(
            len(name) <= MAX_TAG_NAME and isinstance(text, str) and len(text) <= MAX_TAG_CHARS
            for name, text in value.items()
        )
    )


def _is_truncation(value: Any) -> bool:
    return type(value) is int and (value == -1 or 1 <= value <= _MAX_INT)


MAX_TAGS, MAX_TAG_NAME, MAX_TAG_CHARS = 16, 64, 512
"""The bounds of OpenAI's `metadata`."""
MAX_NAME = 64
"""Far longer than any field's name."""
MAX_STOP_TOKENS = 1024
_TOKEN_ID = re.compile("[0-9]{1,10}")
_MAX_INT = 2**31 - 1
_MAX_SEED = 2**63 - 1

_TEXT_INPUT = Field("a string, an array of strings, or token ids", _is_text_input)
_STOP_TOKENS = Field(
    f"an array of up to {MAX_STOP_TOKENS} token ids",
    lambda value: _is_token_ids(value) and len(value) <= MAX_STOP_TOKENS,
    ([],),
)
_TAGS = Field(
    f"an object of up to {MAX_TAGS} texts: names of up to {MAX_TAG_NAME} characters, values of up to "
    f"{MAX_TAG_CHARS}",
    _is_tags,
    ({},),
)
_TRUNCATION = Field("-1 or a whole number from 1", _is_truncation)
_STOP = Field("a string or an array of up to 16 non-empty strings", _is_stop, ([], ""))

_SAMPLING: dict[str, Field] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1, 1),
    "top_k": _integer(-1, _MAX_INT, -1, 0),
    "min_p": _number(0, 1, 0),
    "presence_penalty": _number(-2, 2, 0),
    "frequency_penalty": _number(-2, 2, 0),
    "repetition_penalty": _number(0.01, 10, 1),
    "seed": _integer(-_MAX_SEED, _MAX_SEED),
    "max_tokens": _integer(1, _MAX_INT),
    "min_tokens": _integer(0, _MAX_INT, 0),
    "ignore_eos": _boolean(False),
    "stop": _STOP,
    "stop_token_ids": _STOP_TOKENS,
    "n": _integer(1, 128, 1),
    "logit_bias": Field("an object of numbers from -100 to 100 by token id", _is_bias, ({},)),
    "user": _string(),
    "safety_identifier": _string(),
    "priority": _integer(0, 1000, 0),
    "cache_salt": Field(
        "a string of 1 to 1024 characters",
        lambda value: isinstance(value, str) and 1 <= len(value) <= 1024,
    ),
}
_TEMPLATE: dict[str, Field] = {
    "add_generation_prompt": _boolean(True),
    "continue_final_message": _boolean(False),
    "chat_template_kwargs": _object({}),
}
_STREAMING: dict[str, Field] = {
    "stream": _boolean(),
    "stream_options": Field(
        f"an object with {', '.join(sorted(NAMES))} (true or false)", is_stream_options
    ),
}

CHAT_FIELDS: dict[str, Field] = {
    "model": _string(),
    "messages": Field("a non-empty array", lambda value: isinstance(value, list) and bool(value)),
    **_SAMPLING,
    **_STREAMING,
    "max_completion_tokens": _integer(1, _MAX_INT),
    "logprobs": _boolean(False),
    "top_logprobs": _integer(0, 20, 0),
    "response_format": _object({"type": "text"}),
    "tools": _array([]),
    "tool_choice": Field(
        "'none', 'auto', 'required' or an object that names a tool or the allowed ones",
        lambda value: value in ("none", "auto", "required") or isinstance(value, dict),
        ("none", "auto"),
    ),
    "parallel_tool_calls": _boolean(True),
    **_TEMPLATE,
    "separate_reasoning": _boolean(),
    "truncate_prompt_tokens": _TRUNCATION,
    "functions": _array(),
    "function_call": Field("a string or an object", lambda v: isinstance(v, str | dict)),
    "audio": _object(),
    "metadata": _TAGS,
    "modalities": _array(["text"]),
    "moderation": _object(),
    "prediction": _object(),
    "prompt_cache_key": _string(),
    "prompt_cache_options": _object({}, {"mode": "implicit"}),
    "prompt_cache_retention": _string("in_memory"),
    "reasoning_effort": _string(),
    "service_tier": _string("auto", "default"),
    "store": _boolean(False),
    "verbosity": _string("medium"),
    "web_search_options": _object(),
}
COMPLETION_FIELDS: dict[str, Field] = {
    "model": _string(),
    "prompt": _TEXT_INPUT,
    **_SAMPLING,
    **_STREAMING,
    "max_tokens": _integer(0, _MAX_INT),
    "logprobs": _integer(0, 5),
    "echo": _boolean(False),
    "truncate_prompt_tokens": _TRUNCATION,
    "suffix": _string(""),
    "best_of": _integer(1, 20, 1),
}
EMBEDDING_FIELDS: dict[str, Field] = {
    "model": _string(),
    "input": _TEXT_INPUT,
    "encoding_format": _choice("float", "base64"),
    "dimensions": _integer(1, 1_000_000),
    "truncate_prompt_tokens": _TRUNCATION,
    "user": _string(),
    "safety_identifier": _string(),
}
RERANK_FIELDS: dict[str, Field] = {
    "model": _string(),
    "query": Field("a non-empty string", lambda value: isinstance(value, str) and bool(value)),
    "documents": Field(
        "a non-empty array of strings, or of objects with a string 'text' alone", _is_documents
    ),
    "top_n": _integer(1, _MAX_INT),
    "return_documents": _boolean(False),
    "truncate_prompt_tokens": _TRUNCATION,
    "user": _string(),
    "safety_identifier": _string(),
}
TOKENIZE_FIELDS: dict[str, Field] = {
    "model": _string(),
    "prompt": _string(),
    "messages": CHAT_FIELDS["messages"],
    "tools": CHAT_FIELDS["tools"],
    "add_special_tokens": _boolean(),
    **_TEMPLATE,
    "return_token_strs": _boolean(),
}

FIELDS: dict[Endpoint, dict[str, Field]] = {
    Endpoint.CHAT: CHAT_FIELDS,
    Endpoint.COMPLETIONS: COMPLETION_FIELDS,
    Endpoint.EMBEDDINGS: EMBEDDING_FIELDS,
    Endpoint.RERANK: RERANK_FIELDS,
    Endpoint.TOKENIZE: TOKENIZE_FIELDS,
}
REQUIRED: dict[Endpoint, tuple[str, ...]] = {
    Endpoint.CHAT: ("messages",),
    Endpoint.COMPLETIONS: ("prompt",),
    Endpoint.EMBEDDINGS: ("input",),
    Endpoint.RERANK: ("query", "documents"),
    Endpoint.TOKENIZE: (),
}
ALWAYS_HONOURED = frozenset({"model", "stream", "stream_options", "user", "safety_identifier"})
WISHES = frozenset({"prediction", "reasoning_effort", "service_tier", "store", "verbosity"})
"""Fields that every engine takes and need not follow: an answer is right without. They ask for
speed, brevity, a price, or for OpenAI to keep the answer, which it does not always do either."""

_INSTEAD = {
    "logit_bias": "remove it, or use an engine that can: 'llamacpp', 'vllm', or 'remote'",
    "functions": "use 'tools' instead",
    "function_call": "use 'tool_choice' instead",
}
_SCHEMA_INSTEAD = "Use 'response_format' of /v1/chat/completions, with a JSON schema."
_SWITCH_INSTEAD = (
    "Set what the model's chat template takes for it in 'chat_template_kwargs' of "
    "/v1/chat/completions."
)
_ELSEWHERE = {
    **dict.fromkeys(("n_predict", "num_predict", "max_new_tokens", "max_output_tokens"),
                    "Use 'max_tokens'."),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar",
                     "structured_outputs", "json_schema"), _SCHEMA_INSTEAD),
    **dict.fromkeys(("enable_thinking", "thinking", "reasoning", "documents"), _SWITCH_INSTEAD),
    "include_reasoning": "Use 'separate_reasoning' of /v1/chat/completions.",
    "repeat_penalty": "Use 'repetition_penalty'.",
    "stop_sequences": "Use 'stop'.",
    "prompt_logprobs": "Use 'echo' with 'logprobs' of /v1/completions.",
    "chat_template": "The model's own is used; a chat_template.jinja in its folder replaces it.",
}  # fmt: skip
"""Fields of other servers, and what to use instead of them."""


GATEWAY_FIELDS = frozenset({"prompt_cache_key", "metadata"})
"""Fields that the gateway itself honours; our own engines do not receive them."""


def check_values(body: Mapping[str, Any], endpoint: Endpoint) -> None:
    """Raise a 400 that names the first field with an invalid value, or a missing required field.
    Unknown fields pass, because an external server may know them.
    """
    fields = FIELDS[endpoint]
    for name in REQUIRED[endpoint]:
        if body.get(name) is None:
            raise missing_parameter(name)
    for name, value in body.items():
        field = fields.get(name)
        if field is not None and value is not None and not field.accepts(value):
            raise bad_request(
                f"'{name}' must be {field.rule}, not {show_value(value)}.", name, "invalid_value"
            )


def check_tags(value: Any, name: str) -> None:
    """Raise a 400 if the field `name` does not hold tags, as `metadata` does."""
    if not _TAGS.accepts(value):
        raise bad_request(
            f"'{name}' must be {_TAGS.rule}, not {show_value(value)}.", name, "invalid_value"
        )


def encode_tags(tags: Mapping[str, str]) -> str:
    """Tags as JSON, in one order, so that equal tags are equal texts."""
    try:
        return msgspec.json.encode(tags, order="sorted").decode()
    except UnicodeEncodeError:  # half of a surrogate pair
        clean = {sanitize_text(name): sanitize_text(text) for name, text in tags.items()}
        return msgspec.json.encode(clean, order="sorted").decode()


def check_family(endpoint: Endpoint, family: str) -> None:
    """Raise a 400 if models of this family do not answer the endpoint at all."""
    answered = ANSWERED[Family(family)]
    if endpoint is Endpoint.TOKENIZE or endpoint in answered:
        return
    raise bad_request(
        f"this model is {Family(family).with_article}; it answers {' and '.join(answered)}",
        "model",
        "wrong_model_family",
    )


def check_honoured(
    body: Mapping[str, Any],
    endpoint: Endpoint,
    honoured: Collection[str] | None,
    engine: str = "engine",
    version: str | None = None,
) -> None:
    """Raise a 400 that names the first field that the engine cannot honour, if there is one.

    `honoured` names the fields that the engine can honour; None means that only the external server
    knows. `version` is named in the message if the model may have several.
    """
    if honoured is None:
        return
    fields = FIELDS[endpoint]
    for name, value in body.items():
        field = fields.get(name)
        if field is None:
            raise _unknown(name, fields)
        if (
            value is not None
            and name not in WISHES
            and not is_honoured(name, endpoint, honoured)
            and value not in field.neutral
        ):
            instead = _INSTEAD.get(name, "remove it, or use an engine that can")
            behind = engine if version is None else f"version {version}, {engine}"
            raise bad_request(
                f"The engine behind this model ({behind}) cannot honour '{name}'; {instead}.",
                name,
                "unsupported_parameter",
            )


def is_honoured(name: str, endpoint: Endpoint, honoured: Collection[str]) -> bool:
    """Whether an engine that honours the fields `honoured` honours this one."""
    return name in honoured or name in ALWAYS_HONOURED or name in REQUIRED[endpoint]


Narrowed = Mapping[tuple[Endpoint, str], Field]
"""What an engine honours of fields that it honours in part."""


def check_narrowed(
    body: Mapping[str, Any], endpoint: Endpoint, narrowed: Narrowed, engine: str = "engine"
) -> None:
    """Raise a 400 that names the first field with a value that the engine does not honour."""
    for (where, name), field in narrowed.items():
        value = body.get(name)
        if where is endpoint and value is not None and not field.accepts(value):
            raise bad_request(
                f"The engine behind this model ({engine}) cannot honour '{name}' as given: it must "
                f"be {field.rule}, not {show_value(value)}.",
                name,
                "unsupported_parameter",
            )


def check_fields(
    body: Mapping[str, Any],
    endpoint: Endpoint,
    honoured: Collection[str] | None,
    engine: str = "engine",
) -> None:
    """Run `check_values` and `check_honoured`."""
    check_values(body, endpoint)
    check_honoured(body, endpoint, honoured, engine)


MAX_USER = 256
"""Characters of an end user's name that are recorded; what follows them is not."""


def read_user(body: Mapping[str, Any]) -> Any:
    """The end user that a request names, in `user` or in the field that replaced it."""
    user = body.get("user")
    return body.get("safety_identifier") if user is None else user


def missing_parameter(name: str) -> WireError:
    """The 400 for a missing required parameter."""
    return bad_request(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")


def _unknown(name: str, fields: Collection[str]) -> Exception:
    if len(name) > MAX_NAME:
        # Comparing megabytes would block all other requests.
        name = f"{name[:MAX_NAME]}..."
    hint = _ELSEWHERE.get(name, "")
    if not hint and (near := difflib.get_close_matches(name, fields, n=1, cutoff=0.7)):
        hint = f"Did you mean '{near[0]}'?"
    others = [endpoint.value for endpoint, known in FIELDS.items() if name in known]
    if not hint and others:
        hint = f"It is a parameter of {' and '.join(others)}."
    hint = hint and f" {hint}"
    return bad_request(f"Unknown parameter: '{name}'.{hint}", name, "unknown_parameter")


_shortened = reprlib.Repr()
_shortened.maxlist = _shortened.maxdict = 20


def show_value(value: Any) -> str:
    """The representation of a value in error messages, at most 60 characters."""
    # Writing out megabytes would block all other requests.
    text = repr(value[:60]) if isinstance(value, str) else _shortened.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
