"""From a request's JSON to prompts and sampling, checked against the model's limits."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from thrifty.engines.server.backend import Grammar, ModelFacts, Sampling
from thrifty.engines.server.binding import bind_answer, check_ends, parse_response_format
from thrifty.engines.server.tools import (
    ToolPlan,
    add_to_system,
    describe_tools,
    parse_tools,
    render_history,
)
from thrifty.openai.errors import WireError, bad_request
from thrifty.openai.fields import Endpoint
from thrifty.text.tokenizer import TextTokenizer

COMPLETION_DEFAULT_TOKENS = 16
"""What OpenAI's `/v1/completions` generates when `max_tokens` is left out."""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


@dataclass(frozen=True)
class GenerationRequest:
    """One request, ready for the backend: `n` choices for each prompt."""

    endpoint: Endpoint
    model: str
    prompts: list[list[int]]
    n: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    tools: ToolPlan = field(default_factory=ToolPlan)
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0
    """Above 0: it may wait for others."""
    echo_texts: list[str] = field(default_factory=list)
    """For completions with `echo`: the prompts' texts, which begin the answers."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens in all prompts."""
        return sum(len(prompt) for prompt in self.prompts)


def parse_chat(
    body: dict[str, Any], tokenizer: TextTokenizer, facts: ModelFacts
) -> GenerationRequest:
    """The request in the body of `/v1/chat/completions`. Raises a 400 that names the fault."""
    plan = parse_tools(body)
    prompt = encode_chat(body, tokenizer, plan)
    if body.get("top_logprobs"):
        raise _unsupported("top_logprobs", "only the chosen token's log-probability is known")
    schema = parse_response_format(body.get("response_format"))
    grammar = bind_answer(schema, plan, tokenizer.vocabulary_size)
    check_ends(body, schema, plan)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    _check_tokens(body.get("stop_token_ids") or (), tokenizer, "stop_token_ids")
    sampling = _parse_sampling(
        body, [prompt], facts, limit, param="messages", logprobs=bool(body.get("logprobs")),
        grammar=grammar,
    )  # fmt: skip
    return GenerationRequest(
        endpoint=Endpoint.CHAT,
        model=str(body.get("model", "")),
        prompts=[prompt],
        n=body.get("n") or 1,
        sampling=sampling,
        stops=_parse_stops(body),
        stream=bool(body.get("stream")),
        include_usage=_wants_usage(body),
        eos_token_ids=facts.eos_token_ids,
        tools=plan,
        priority=body.get("priority") or 0,
    )


def parse_completion(
    body: dict[str, Any], tokenizer: TextTokenizer, facts: ModelFacts
) -> GenerationRequest:
    """The request in the body of `/v1/completions`. Raises a 400 that names the fault."""
    prompts = [encode_input(item, tokenizer, "prompt") for item in split_inputs(body["prompt"])]
    prompts = [prompt or list(facts.eos_token_ids[:1]) for prompt in prompts]
    logprobs = body.get("logprobs")
    if logprobs:
        raise _unsupported("logprobs", "only 0 is possible: the chosen token's log-probability")
    echo = bool(body.get("echo"))
    if echo and logprobs is not None:
        raise _unsupported("echo", "it cannot be joined with 'logprobs'")
    _check_tokens(body.get("stop_token_ids") or (), tokenizer, "stop_token_ids")
    limit = body.get("max_tokens") or COMPLETION_DEFAULT_TOKENS
    return GenerationRequest(
        endpoint=Endpoint.COMPLETIONS,
        model=str(body.get("model", "")),
        prompts=prompts,
        n=body.get("n") or 1,
        sampling=_parse_sampling(
            body, prompts, facts, limit, param="prompt", logprobs=logprobs is not None
        ),
        stops=_parse_stops(body),
        stream=bool(body.get("stream")),
        include_usage=_wants_usage(body),
        eos_token_ids=facts.eos_token_ids,
        priority=body.get("priority") or 0,
        echo_texts=[tokenizer.decode(prompt) for prompt in prompts] if echo else [],
    )


def split_inputs(value: Any) -> list[str | list[int]]:
    """The inputs in a `prompt` or `input` field: one, or several."""
    if isinstance(value, str):
        return [value]
    if value and isinstance(value[0], int):
        return [value]
    return list(value) or [""]


def encode_input(value: str | list[int], tokenizer: TextTokenizer, param: str) -> list[int]:
    """The tokens of a text, or those given. Raises a 400 where there are no such tokens."""
    if isinstance(value, str):
        return tokenizer.encode(value)
    _check_tokens(value, tokenizer, param)
    return value


def _check_tokens(ids: Sequence[int], tokenizer: TextTokenizer, param: str) -> None:
    size = tokenizer.vocabulary_size
    largest = max(ids, default=0)
    if largest >= size:
        raise bad_request(
            f"'{param}' holds the token {largest}, and this model's tokens end at {size - 1}.",
            param,
            "invalid_value",
        )


def check_length(tokens: int, facts: ModelFacts, param: str, more: int = 0) -> None:
    """Raise a 400 that names both numbers where a prompt does not fit."""
    limit = facts.context_length
    if tokens + more <= limit:
        return
    detail = f" ({tokens} in the {param}, {more} in the completion)" if more else ""
    raise bad_request(
        f"This model's maximum context length is {limit} tokens. However, you requested "
        f"{tokens + more} tokens{detail}. Please reduce the length of the {param}"
        f"{' or completion' if more else ''}.",
        param,
        "context_length_exceeded",
    )


def encode_chat(body: dict[str, Any], tokenizer: TextTokenizer, plan: ToolPlan) -> list[int]:
    """The prompt's tokens for a conversation and its tools."""
    messages = [_check_message(m, f"messages[{i}]") for i, m in enumerate(body["messages"])]
    tools: list[dict[str, Any]] | None = None
    if tokenizer.knows_tools:
        tools = plan.tools if plan.active else None
    else:
        messages = render_history(messages)
        if plan.active:
            messages = add_to_system(messages, describe_tools(plan))
    text = tokenizer.render_chat(
        messages,
        tools=tools,
        add_generation_prompt=body.get("add_generation_prompt") is not False,
        extra=body.get("chat_template_kwargs"),
    )
    # The template writes the special tokens itself.
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise bad_request(
            "the model's chat template makes nothing of these messages", "messages", "invalid_value"
        )
    return ids


def _check_message(message: Any, where: str) -> dict[str, Any]:
    """A message as chat templates expect it: its content is one string."""
    if not isinstance(message, dict):
        raise bad_request(f"'{where}' must be an object.", "messages", "invalid_value")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_request(
            f"'{where}.role' must be one of {', '.join(sorted(ROLES))}, not {role!r}.",
            "messages",
            "invalid_value",
        )
    message = {**message}
    message["role"] = "system" if role == "developer" else role
    content = message.get("content")
    if content is None and not (role == "assistant" and message.get("tool_calls")):
        raise bad_request(f"'{where}.content' is missing.", "messages", "invalid_value")
    message["content"] = _join_content(content, where)
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise bad_request(
                f"'{where}.tool_calls' must be an array.", "messages", "invalid_value"
            )
        message["tool_calls"] = [
            _check_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)
        ]
    checked: dict[str, Any] = message
    return checked


def _join_content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(
            f"'{where}.content' must be a string or an array of parts.", "messages", "invalid_value"
        )
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise bad_request(
                f"'{where}.content[{index}]' is of type {kind!r}; this model takes text alone.",
                "messages",
                "unsupported_content",
            )
        texts.append(part["text"])
    return "".join(texts)


def _check_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_request(
            f"'{where}' must hold a function with a name.", "messages", "invalid_value"
        )
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise bad_request(
                f"'{where}.function.arguments' is not JSON.", "messages", "invalid_value"
            ) from None
    return {**call, "function": {**function, "arguments": arguments}}


def _parse_sampling(
    body: dict[str, Any],
    prompts: list[list[int]],
    facts: ModelFacts,
    limit: int | None,
    *,
    param: str,
    logprobs: bool,
    grammar: Grammar | None = None,
) -> Sampling:
    longest = max(len(prompt) for prompt in prompts)
    if limit is None:
        check_length(longest + 1, facts, param)
        limit = facts.context_length - longest
    else:
        check_length(longest, facts, param, limit)
    if not all(prompts):
        raise bad_request(f"'{param}' must not be empty.", param, "invalid_value")
    least = body.get("min_tokens") or 0
    if least > limit:
        raise bad_request(
            f"'min_tokens' is {least}, more than the {limit} tokens that may be generated.",
            "min_tokens",
            "invalid_value",
        )
    temperature = body.get("temperature")
    seed = body.get("seed")
    top_k = body.get("top_k") or 0
    return Sampling(
        max_tokens=limit,
        min_tokens=least,
        temperature=1.0 if temperature is None else float(temperature),
        top_p=_or(body.get("top_p"), 1.0),
        top_k=max(0, top_k),
        min_p=_or(body.get("min_p"), 0.0),
        presence_penalty=_or(body.get("presence_penalty"), 0.0),
        frequency_penalty=_or(body.get("frequency_penalty"), 0.0),
        repetition_penalty=_or(body.get("repetition_penalty"), 1.0),
        seed=secrets.randbits(31) if seed is None else seed % 2**31,
        ignore_eos=bool(body.get("ignore_eos")),
        stop_token_ids=tuple(body.get("stop_token_ids") or ()),
        logprobs=logprobs,
        grammar=grammar,
    )


def _or(value: Any, default: float) -> float:
    return default if value is None else float(value)


def _parse_stops(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    if stop is None:
        return ()
    return tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text)


def _wants_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is not None and not body.get("stream"):
        raise bad_request(
            "'stream_options' may only be given with 'stream': true.",
            "stream_options",
            "invalid_value",
        )
    return bool((options or {}).get("include_usage"))


def _unsupported(param: str, why: str) -> WireError:
    return bad_request(
        f"The engine behind this model cannot honour '{param}' as given: {why}.",
        param,
        "unsupported_parameter",
    )
