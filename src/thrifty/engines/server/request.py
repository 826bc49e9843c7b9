"""From a request's JSON to prompts and sampling, checked against the model's limits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from thrifty.engines.server.backend import Grammar, ModelFacts, Sampling
from thrifty.engines.server.binding import bind_answer, check_ends, parse_response_format
from thrifty.engines.server.infill import infill_prompts
from thrifty.engines.server.prompt import build_prompt, check_text
from thrifty.engines.server.tools import ToolPlan, parse_tools
from thrifty.openai.errors import bad_request
from thrifty.openai.fields import Endpoint
from thrifty.openai.stream_options import StreamOptions, parse_stream_options
from thrifty.text.tokenizer import TextTokenizer

COMPLETION_DEFAULT_TOKENS = 16
"""What OpenAI's `/v1/completions` generates when `max_tokens` is left out."""
MAX_CHOICES = 2048
"""How many answers one request may ask for: prompts times `n`."""


@dataclass(frozen=True)
class GenerationRequest:
    """One request, ready for the backend: `candidates` answers for each prompt, of which the best
    `n` are told.
    """

    endpoint: Endpoint
    model: str
    prompts: list[list[int]]
    n: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    stream_options: StreamOptions = field(default_factory=StreamOptions)
    candidates: int = 1
    """At least `n`."""
    logprobs: bool = False
    """Whether the client wants log-probabilities; how many, the sampling says."""
    tools: ToolPlan = field(default_factory=ToolPlan)
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0
    """Above 0: it may wait for others."""
    echo_texts: list[str] = field(default_factory=list)
    """For completions with `echo`: the prompts' texts, which begin the answers."""
    separates_reasoning: bool = False
    """Whether the model's reasoning is no part of the answers' content."""
    within_reasoning: bool = False
    """Whether answers begin within it."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens in all prompts."""
        return sum(len(prompt) for prompt in self.prompts)

    def prompt_of(self, candidate: int) -> list[int]:
        """The prompt that a candidate answers."""
        return self.prompts[candidate // self.candidates]

    def echo_of(self, candidate: int) -> str:
        """What begins a candidate's text: its prompt's, if that was asked for."""
        return self.echo_texts[candidate // self.candidates] if self.echo_texts else ""


def parse_chat(
    body: dict[str, Any], tokenizer: TextTokenizer, facts: ModelFacts
) -> GenerationRequest:
    """The request in the body of `/v1/chat/completions`. Raises a 400 that names the fault."""
    plan = parse_tools(body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    keep = parse_truncation(body, facts, limit or 1)
    logprobs, top = bool(body.get("logprobs")), body.get("top_logprobs") or 0
    if top and not logprobs:
        raise bad_request(
            "'top_logprobs' may only be given with 'logprobs': true.",
            "top_logprobs",
            "invalid_value",
        )
    prompt = build_prompt(body, tokenizer, plan, facts=facts, keep=keep)
    schema = parse_response_format(body.get("response_format"))
    grammar = bind_answer(schema, plan, tokenizer.vocabulary_size)
    check_ends(body, schema, plan)
    _check_named_tokens(body, tokenizer)
    sampling = _parse_sampling(
        body, [prompt.ids], facts, limit, param="messages", logprobs=logprobs, top_logprobs=top,
        grammar=grammar,
    )  # fmt: skip
    n = body.get("n") or 1
    return GenerationRequest(
        endpoint=Endpoint.CHAT,
        model=str(body.get("model", "")),
        prompts=[prompt.ids],
        n=n,
        candidates=n,
        sampling=sampling,
        logprobs=logprobs,
        separates_reasoning=_separates_reasoning(body, schema, plan),
        within_reasoning=prompt.within_reasoning,
        stops=_parse_stops(body),
        stream=bool(body.get("stream")),
        stream_options=parse_stream_options(body),
        eos_token_ids=facts.eos_token_ids,
        tools=plan,
        priority=body.get("priority") or 0,
    )


def parse_completion(
    body: dict[str, Any], tokenizer: TextTokenizer, facts: ModelFacts
) -> GenerationRequest:
    """The request in the body of `/v1/completions`. Raises a 400 that names the fault."""
    echo, suffix = bool(body.get("echo")), body.get("suffix")
    n, candidates = _parse_counts(body)
    limit = body.get("max_tokens")
    if limit == 0 and not echo:
        raise bad_request(
            "'max_tokens' may only be 0 with 'echo': true.", "max_tokens", "invalid_value"
        )
    inputs = split_inputs(body["prompt"])
    if len(inputs) * candidates > MAX_CHOICES:
        raise bad_request(
            f"'prompt' has {len(inputs)} texts with {candidates} answers each; at most {MAX_CHOICES} "
            "answers may come at once.",
            "prompt",
            "invalid_value",
        )
    keep = parse_truncation(body, facts, 1 if limit is None else limit)
    prompts = [
        encode_input(item, tokenizer, "prompt", facts, keep, keep_end=True) for item in inputs
    ]
    ends: tuple[int, ...] = ()
    if suffix:
        if echo:
            raise bad_request(
                "'suffix' and 'echo' cannot be given together.", "suffix", "invalid_value"
            )
        prompts, ends = infill_prompts(prompts, suffix, tokenizer)
    prompts = [prompt or list(facts.eos_token_ids[:1]) for prompt in prompts]
    logprobs = body.get("logprobs")
    _check_named_tokens(body, tokenizer)
    return GenerationRequest(
        endpoint=Endpoint.COMPLETIONS,
        model=str(body.get("model", "")),
        prompts=prompts,
        n=n,
        candidates=candidates,
        sampling=_parse_sampling(
            body, prompts, facts, limit, param="prompt",
            logprobs=logprobs is not None or candidates > n, top_logprobs=logprobs or 0,
            prompt_logprobs=echo and logprobs is not None, more_stops=ends,
            usual=COMPLETION_DEFAULT_TOKENS,
        ),
        logprobs=logprobs is not None,
        stops=_parse_stops(body),
        stream=bool(body.get("stream")),
        stream_options=parse_stream_options(body),
        eos_token_ids=facts.eos_token_ids,
        priority=body.get("priority") or 0,
        echo_texts=[tokenizer.decode(prompt) for prompt in prompts] if echo else [],
    )  # fmt: skip


def _parse_counts(body: dict[str, Any]) -> tuple[int, int]:
    """How many answers to each prompt are told, and how many are generated."""
    n = body.get("n") or 1
    best_of = body.get("best_of")
    if best_of is None:
        return n, n
    if best_of < n:
        raise bad_request(
            f"'best_of' is {best_of}, less than the {n} answers that 'n' asks for.",
            "best_of",
            "invalid_value",
        )
    if best_of > n and body.get("stream"):
        raise bad_request(
            "'best_of' cannot be streamed: which answers are best is known when all have ended.",
            "best_of",
            "invalid_value",
        )
    return n, best_of


def split_inputs(value: Any) -> list[str | list[int]]:
    """The inputs in a `prompt` or `input` field: one, or several."""
    if isinstance(value, str):
        return [value]
    if value and isinstance(value[0], int):
        return [value]
    return list(value) or [""]


def encode_input(
    value: str | list[int],
    tokenizer: TextTokenizer,
    param: str,
    facts: ModelFacts,
    keep: int | None = None,
    *,
    keep_end: bool,
) -> list[int]:
    """The tokens of a text, or those given; at most `keep` of them, from its beginning or its end.
    Raises a 400 where there are no such tokens, or where the text is certainly too long.
    """
    if not isinstance(value, str):
        _check_tokens(value, tokenizer, param)
        if keep is None:
            return value
        return value[-keep:] if keep_end else value[:keep]
    if keep is None:
        check_text(value, tokenizer, facts, param)
        return tokenizer.encode(value)
    if keep <= tokenizer.special_count:
        raise bad_request(
            f"'truncate_prompt_tokens' is {keep}; this model puts {tokenizer.special_count} tokens "
            "of its own around a text, so it must be more.",
            "truncate_prompt_tokens",
            "invalid_value",
        )
    return tokenizer.encode_truncated(value, keep, keep_end=keep_end)


def parse_truncation(body: dict[str, Any], facts: ModelFacts, answer: int) -> int | None:
    """How many tokens of a prompt to keep; None for all. -1 stands for as many as leave room for
    `answer` tokens. Raises a 400.
    """
    keep = body.get("truncate_prompt_tokens")
    if keep is None:
        return None
    if keep > facts.context_length:
        raise bad_request(
            f"'truncate_prompt_tokens' is {keep}, more than this model's maximum context length of "
            f"{facts.context_length} tokens.",
            "truncate_prompt_tokens",
            "invalid_value",
        )
    return int(keep) if keep > 0 else max(1, facts.context_length - answer)


def _separates_reasoning(
    body: dict[str, Any], schema: dict[str, Any] | None, plan: ToolPlan
) -> bool:
    """An answer that a grammar binds from its first token has no reasoning."""
    bound = schema is not None or (plan.active and plan.choice == "required")
    return body.get("separate_reasoning") is not False and not bound


def _check_named_tokens(body: dict[str, Any], tokenizer: TextTokenizer) -> None:
    _check_tokens(body.get("stop_token_ids") or (), tokenizer, "stop_token_ids")
    _check_tokens([token for token, _ in _parse_bias(body)], tokenizer, "logit_bias")


def _parse_bias(body: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    return tuple((int(name), float(bias)) for name, bias in (body.get("logit_bias") or {}).items())


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


def _parse_sampling(
    body: dict[str, Any],
    prompts: list[list[int]],
    facts: ModelFacts,
    limit: int | None,
    *,
    param: str,
    logprobs: bool,
    top_logprobs: int = 0,
    prompt_logprobs: bool = False,
    more_stops: tuple[int, ...] = (),
    grammar: Grammar | None = None,
    usual: int | None = None,
) -> Sampling:
    """`usual` is the limit of requests that name none, as far as there is room; None: all the room
    there is.
    """
    longest = max(len(prompt) for prompt in prompts)
    if limit is None:
        check_length(longest + 1, facts, param)
        room = facts.context_length - longest
        limit = room if usual is None else min(usual, room)
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
        seeded=seed is not None,
        ignore_eos=bool(body.get("ignore_eos")),
        stop_token_ids=(*(body.get("stop_token_ids") or ()), *more_stops),
        logit_bias=_parse_bias(body),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        salt=body.get("cache_salt") or "",
    )


def _or(value: Any, default: float) -> float:
    return default if value is None else float(value)


def _parse_stops(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    if stop is None:
        return ()
    return tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text)
