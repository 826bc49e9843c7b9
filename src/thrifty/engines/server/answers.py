"""Answers in the OpenAI shape: whole ones, and the chunks of a stream.

A stream's chunks differ only in their text, so the bytes around it are made once for each choice.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from thrifty.engines.server.calls import CallBegin, CallReader, TextPart, describe_call, read_answer
from thrifty.engines.server.choice import Choice, choose_best
from thrifty.engines.server.log_probabilities import (
    TokenDetail,
    describe_for_chat,
    describe_for_completion,
    move_details,
)
from thrifty.engines.server.request import GenerationRequest
from thrifty.openai.events import encode_event
from thrifty.openai.fields import Endpoint

_encode = msgspec.json.Encoder().encode


def build_usage(request: GenerationRequest, choices: list[Choice]) -> dict[str, Any]:
    """Token counts of a request. A prompt counts once, however many choices it has."""
    completion = sum(choice.tokens for choice in choices)
    cached = sum(choice.cached_tokens for choice in choices[:: request.candidates])
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": request.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def encode_usage(request: GenerationRequest, choices: list[Choice]) -> bytes:
    """`build_usage` as JSON."""
    return _encode(build_usage(request, choices))


def build_answer(request: GenerationRequest, choices: list[Choice], answer_id: str) -> bytes:
    """The whole answer to a request that is not streamed."""
    chat = request.endpoint is Endpoint.CHAT
    build = _chat_choice if chat else _text_choice
    return _encode(
        {
            "id": answer_id,
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [
                build(request, choice, index)
                for index, choice in enumerate(choose_best(choices, request))
            ],
            "usage": build_usage(request, choices),
        }
    )


def _chat_choice(request: GenerationRequest, choice: Choice, index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
        message["content"] = choice.text or None
    reason = choice.finish_reason
    if request.tools.active:
        text, calls, whole = read_answer(choice.text, request.tools)
        if calls:
            message["content"] = text or None
            message["tool_calls"] = calls
            reason = "tool_calls" if whole else reason
    return {
        "index": index,
        "message": message,
        "logprobs": _chat_logprobs(request, choice, choice.details),
        "finish_reason": reason,
    }


def _text_choice(request: GenerationRequest, choice: Choice, index: int) -> dict[str, Any]:
    echo = request.echo_of(choice.index)
    text = echo + choice.text
    details = move_details(choice.details, len(echo))
    return {
        "index": index,
        "text": text,
        "logprobs": _text_logprobs(request, choice, choice.of_prompt + details, len(text)),
        "finish_reason": choice.finish_reason,
    }


def _chat_logprobs(request: GenerationRequest, choice: Choice, details: list[TokenDetail]) -> Any:
    if not request.logprobs:
        return None
    return {"content": describe_for_chat(details, choice.tokenizer), "refusal": None}


def _text_logprobs(
    request: GenerationRequest, choice: Choice, details: list[TokenDetail], length: int
) -> Any:
    if not request.logprobs:
        return None
    return describe_for_completion(details, choice.tokenizer, request.sampling.top_logprobs, length)


class ChunkWriter:
    """The chunks of one choice's stream."""

    __slots__ = (
        "_begun", "_choice", "_echo", "_head", "_held_details", "_kinds", "_length", "_reader",
        "_request", "_tail",
    )  # fmt: skip

    def __init__(
        self, request: GenerationRequest, choice: Choice, answer_id: str, created: int
    ) -> None:
        self._request = request
        self._choice = choice
        self._echo = request.echo_of(choice.index)
        self._begun = False
        self._reader = CallReader(request.tools)
        self._kinds: list[tuple[str, str]] = []
        """Of each call: what it is, and what its input is called."""
        self._held_details: list[TokenDetail] = []
        self._length = 0
        chat = request.endpoint is Endpoint.CHAT
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._head = (
            f'data: {{"id":"{answer_id}","object":"{kind}","created":{created},"model":'.encode()
            + _encode(request.model)
            + f',"choices":[{{"index":{choice.index},'.encode()
        )
        self._tail = b"}]}\n\n"

    def write(self, text: str, details: list[TokenDetail], usage: bytes | None = None) -> bytes:
        """The chunks for new text, and for the end if the choice has finished. `usage` is what they
        have as token counts.
        """
        self._tail = b"}]}\n\n" if usage is None else b'}],"usage":%b}\n\n' % usage
        finish = self._choice.finish_reason
        if self._request.endpoint is Endpoint.COMPLETIONS:
            return self._write_text(text, details, finish)
        begin = b""
        if not self._begun:
            self._begun = True
            begin = self._chat_chunk(b'{"role":"assistant","content":""}')
        reasoning = self._choice.take_reasoning()
        if reasoning:
            if not text:
                self._held_details, details = self._held_details + details, []
            delta = b'{"reasoning_content":%b}' % _encode(reasoning)
            begin += self._chat_chunk(delta, self._take_details())
        if self._request.tools.active:
            return begin + self._write_with_tools(text, details, finish)
        if finish is None:
            if not text and not details:
                return begin
            return begin + self._content_chunk(text, details)
        body = self._content_chunk(text, details) if text or details else b""
        return begin + body + self._chat_chunk(b"{}", finish=finish)

    def _write_text(self, text: str, details: list[TokenDetail], finish: str | None) -> bytes:
        details = move_details(details, len(self._echo))
        if not self._begun:
            self._begun = True
            text = self._echo + text
            details = self._choice.of_prompt + details
        if not text and not details and finish is None:
            return b""
        self._length += len(text)
        logprobs = _text_logprobs(self._request, self._choice, details, self._length)
        return b'%b"text":%b,"logprobs":%b,"finish_reason":%b%b' % (
            self._head, _encode(text), _encode(logprobs), _encode(finish), self._tail,
        )  # fmt: skip

    def _content_chunk(self, text: str, details: list[TokenDetail]) -> bytes:
        return self._chat_chunk(b'{"content":%b}' % _encode(text), details)

    def _chat_chunk(
        self, delta: bytes, details: list[TokenDetail] | None = None, finish: str | None = None
    ) -> bytes:
        logprobs = b"null"
        if details:
            logprobs = _encode(_chat_logprobs(self._request, self._choice, details))
        return b'%b"delta":%b,"logprobs":%b,"finish_reason":%b%b' % (
            self._head, delta, logprobs, _encode(finish), self._tail,
        )  # fmt: skip

    def _write_with_tools(self, text: str, details: list[TokenDetail], finish: str | None) -> bytes:
        """Text and calls go out as soon as it is certain what they are."""
        self._held_details += details
        events = self._reader.feed(text)
        if finish is not None:
            events += self._reader.end()
        body = b""
        for event in events:
            if isinstance(event, TextPart):
                body += self._content_chunk(event.text, self._take_details())
                continue
            if isinstance(event, CallBegin):
                call = {"index": event.index, **describe_call(event, "")}
                self._kinds.append(
                    ("custom", "input") if event.custom else ("function", "arguments")
                )
            else:
                holder, key = self._kinds[event.index]
                call = {"index": event.index, holder: {key: event.text}}
            body += self._chat_chunk(_encode({"tool_calls": [call]}), self._take_details())
        if finish is None:
            return body
        if self._reader.count and self._reader.whole:
            finish = "tool_calls"
        return body + self._chat_chunk(b"{}", self._take_details(), finish=finish)

    def _take_details(self) -> list[TokenDetail]:
        """The log-probabilities that have not gone out yet."""
        details, self._held_details = self._held_details, []
        return details


def encode_usage_chunk(
    request: GenerationRequest, choices: list[Choice], answer_id: str, created: int
) -> bytes:
    """The chunk after the last text, for those who asked for token counts."""
    chat = request.endpoint is Endpoint.CHAT
    return encode_event(
        {
            "id": answer_id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": created,
            "model": request.model,
            "choices": [],
            "usage": build_usage(request, choices),
        }
    )
